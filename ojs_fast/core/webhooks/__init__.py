"""Webhooks (ojs-webhooks): subscriptions, and events that are sent to them."""
