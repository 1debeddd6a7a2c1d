# Timers: which key is due next (DESIGN section "Time").
#
# Owns the order of due times. Must not know clocks, jobs or event loops.
#
# A binary heap whose entries know their bucket in an open-addressing table of heap positions, so a
# key is found in O(1) and really removed in O(log n): nothing is ever deleted lazily, hence
# nothing stale can pile up when most timers are cancelled before they fire, as with deadlines of
# claimed jobs. An entry costs 32 bytes in the heap and 6 to 12 in the table, plus growth slack,
# plus its key string; a dict of int positions would add an int object of 32 bytes each.

cimport cython
from cpython.mem cimport PyMem_Free, PyMem_Realloc
from cpython.object cimport PyObject
from cpython.ref cimport Py_DECREF, Py_INCREF
from libc.stdint cimport int32_t, int64_t, uint32_t, uint64_t
from libc.string cimport memset

cdef extern from "Python.h":
    Py_hash_t _heap_hash "PyObject_Hash"(object value) except? -1

cdef struct _HeapEntry:
    int64_t due_ms
    # Breaks ties first come, first served; 64 bits of pushes never wrap.
    uint64_t arrival
    PyObject *key
    uint32_t bucket
    # The low half of the key's hash: probing and rehashing need not touch the string.
    uint32_t hash

cdef Py_ssize_t _HEAP_SMALLEST = 64
cdef Py_ssize_t _HEAP_LARGEST = 0x7FFFFFFF
cdef int32_t _HEAP_EMPTY = -1


cdef inline bint _heap_before(const _HeapEntry *left, const _HeapEntry *right) noexcept nogil:
    if left.due_ms != right.due_ms:
        return left.due_ms < right.due_ms
    return left.arrival < right.arrival


@cython.final
cdef class TimerHeap:
    """Keys (str) ordered by due time (int ms since any epoch, 0..2**63-1), equals in push order.

    A due time beyond 64 bits raises OverflowError, a key that is no plain str TypeError.
    """

    cdef _HeapEntry *_entries
    cdef int32_t *_table
    cdef Py_ssize_t _count
    cdef Py_ssize_t _capacity
    # Always a power of two, or 0 before the first push.
    cdef Py_ssize_t _buckets
    cdef uint64_t _arrivals

    def __dealloc__(self):
        self._release()

    def __len__(self):
        return self._count

    def __contains__(self, str key not None):
        return self._find(key) >= 0

    def push(self, str key not None, int64_t due_ms):
        """Arm `key` for `due_ms`; an armed key gets the new due time and the place of a new one.

        Raises ValueError for a negative due time, which `next_due_ms` could not tell from empty.
        """
        if due_ms < 0:
            raise ValueError(f"due_ms must not be negative, got {due_ms}")
        cdef Py_ssize_t position = self._find(key)
        if position >= 0:
            self._entries[position].due_ms = due_ms
            self._entries[position].arrival = self._arrivals
            self._arrivals += 1
            self._settle(position)
            return
        self._reserve()
        position = self._count
        cdef _HeapEntry *entry = &self._entries[position]
        entry.due_ms = due_ms
        entry.arrival = self._arrivals
        entry.hash = <uint32_t>_heap_hash(key)
        entry.key = <PyObject *>key
        Py_INCREF(key)
        self._arrivals += 1
        self._count += 1
        self._enter(position)
        self._rise(position)

    def remove(self, str key not None):
        """Disarm `key`; return whether it was armed."""
        cdef Py_ssize_t position = self._find(key)
        if position < 0:
            return False
        self._take(position)
        self._shrink()
        return True

    def next_due_ms(self):
        """Return the earliest due time in ms (int), -1 when nothing is armed."""
        return self._entries[0].due_ms if self._count else -1

    def pop_due(self, int64_t now_ms, Py_ssize_t limit):
        """Disarm and return at most `limit` keys (list of str) due at `now_ms` or earlier, in order.

        Raises ValueError for a negative limit.
        """
        if limit < 0:
            raise ValueError(f"limit must not be negative, got {limit}")
        cdef list due = []
        while limit and self._count and self._entries[0].due_ms <= now_ms:
            due.append(<str>self._entries[0].key)
            self._take(0)
            limit -= 1
        if due:
            self._shrink()
        return due

    def due_ms(self, str key not None):
        """Return the due time of `key` in ms (int), None when it is not armed."""
        cdef Py_ssize_t position = self._find(key)
        return self._entries[position].due_ms if position >= 0 else None

    def clear(self):
        """Disarm every key and give the memory back."""
        self._release()

    cdef void _release(self) noexcept:
        cdef Py_ssize_t position
        cdef Py_ssize_t count = self._count
        self._count = 0
        for position in range(count):
            Py_DECREF(<object>self._entries[position].key)
        PyMem_Free(self._entries)
        PyMem_Free(self._table)
        self._entries = NULL
        self._table = NULL
        self._capacity = 0
        self._buckets = 0

    cdef Py_ssize_t _find(self, str key) except -2:
        if self._count == 0:
            return -1
        cdef uint32_t hash_bits = <uint32_t>_heap_hash(key)
        cdef uint32_t mask = <uint32_t>(self._buckets - 1)
        cdef uint32_t bucket = hash_bits & mask
        cdef int32_t position = self._table[bucket]
        while position != _HEAP_EMPTY:
            if self._entries[position].hash == hash_bits and (
                self._entries[position].key == <PyObject *>key
                or <str>self._entries[position].key == key
            ):
                return position
            bucket = (bucket + 1) & mask
            position = self._table[bucket]
        return -1

    cdef int _reserve(self) except -1:
        # Room is made before anything is changed, so a MemoryError leaves the heap as it was.
        cdef Py_ssize_t wanted
        if self._count == self._capacity:
            wanted = self._capacity + (self._capacity >> 1)
            if wanted < _HEAP_SMALLEST:
                wanted = _HEAP_SMALLEST
            if wanted > _HEAP_LARGEST:
                raise MemoryError("a TimerHeap holds at most 2**31 keys")
            self._resize_entries(wanted)
        # Above two thirds full, linear probing gets slow.
        if (self._count + 1) * 3 > self._buckets * 2:
            self._resize_table(self._buckets * 2 if self._buckets else _HEAP_SMALLEST * 2)
        return 0

    cdef int _shrink(self) except -1:
        # At a quarter, not at a half: a heap that hovers around a limit must not resize for ever.
        cdef Py_ssize_t wanted
        if self._capacity > _HEAP_SMALLEST and self._count * 4 < self._capacity:
            wanted = self._count * 2
            if wanted < _HEAP_SMALLEST:
                wanted = _HEAP_SMALLEST
            self._resize_entries(wanted)
            wanted = self._buckets
            while wanted > _HEAP_SMALLEST * 2 and self._count * 6 < wanted:
                wanted >>= 1
            if wanted != self._buckets:
                self._resize_table(wanted)
        return 0

    cdef int _resize_entries(self, Py_ssize_t capacity) except -1:
        cdef void *memory = PyMem_Realloc(self._entries, capacity * sizeof(_HeapEntry))
        if memory == NULL:
            raise MemoryError
        self._entries = <_HeapEntry *>memory
        self._capacity = capacity
        return 0

    cdef int _resize_table(self, Py_ssize_t buckets) except -1:
        cdef void *memory = PyMem_Realloc(NULL, buckets * sizeof(int32_t))
        if memory == NULL:
            raise MemoryError
        PyMem_Free(self._table)
        self._table = <int32_t *>memory
        self._buckets = buckets
        # All bits set is _HEAP_EMPTY.
        memset(self._table, 0xFF, buckets * sizeof(int32_t))
        cdef Py_ssize_t position
        for position in range(self._count):
            self._enter(position)
        return 0

    cdef void _enter(self, Py_ssize_t position) noexcept:
        cdef uint32_t mask = <uint32_t>(self._buckets - 1)
        cdef uint32_t bucket = self._entries[position].hash & mask
        while self._table[bucket] != _HEAP_EMPTY:
            bucket = (bucket + 1) & mask
        self._table[bucket] = <int32_t>position
        self._entries[position].bucket = bucket

    cdef void _vacate(self, uint32_t bucket) noexcept:
        # Later entries of the probe run move back into the gap, so no tombstones are needed.
        cdef uint32_t mask = <uint32_t>(self._buckets - 1)
        cdef uint32_t gap = bucket
        cdef uint32_t home
        cdef int32_t position
        while True:
            bucket = (bucket + 1) & mask
            position = self._table[bucket]
            if position == _HEAP_EMPTY:
                break
            home = self._entries[position].hash & mask
            # The entry may move only if its home does not lie cyclically behind the gap.
            if ((bucket - home) & mask) >= ((bucket - gap) & mask):
                self._table[gap] = position
                self._entries[position].bucket = gap
                gap = bucket
        self._table[gap] = _HEAP_EMPTY

    cdef void _take(self, Py_ssize_t position) noexcept:
        cdef PyObject *key = self._entries[position].key
        self._vacate(self._entries[position].bucket)
        self._count -= 1
        if position != self._count:
            self._place(position, self._entries[self._count])
            self._settle(position)
        Py_DECREF(<object>key)

    cdef inline void _place(self, Py_ssize_t position, _HeapEntry entry) noexcept:
        self._entries[position] = entry
        self._table[entry.bucket] = <int32_t>position

    cdef void _settle(self, Py_ssize_t position) noexcept:
        if self._rise(position) == position:
            self._sink(position)

    cdef Py_ssize_t _rise(self, Py_ssize_t position) noexcept:
        cdef _HeapEntry entry = self._entries[position]
        cdef Py_ssize_t parent
        while position > 0:
            parent = (position - 1) >> 1
            if not _heap_before(&entry, &self._entries[parent]):
                break
            self._place(position, self._entries[parent])
            position = parent
        self._place(position, entry)
        return position

    cdef void _sink(self, Py_ssize_t position) noexcept:
        cdef _HeapEntry entry = self._entries[position]
        cdef Py_ssize_t child = 2 * position + 1
        while child < self._count:
            if child + 1 < self._count and _heap_before(
                &self._entries[child + 1], &self._entries[child]
            ):
                child += 1
            if not _heap_before(&self._entries[child], &entry):
                break
            self._place(position, self._entries[child])
            position = child
            child = 2 * position + 1
        self._place(position, entry)
