
/* A program's struct is as large as its header says: the library writes no more. */
#define memslots_config_init(config)                                                               \
    memslots_config_init_sized((config), sizeof(struct memslots_config))

/*
 * The first part of a reader: what a hit of the last-used slot needs. Private to the function below.
 */
struct memslots_reader_hot {
    const uint64_t *seq;
    uint64_t key;
    uint64_t base_gfn;
    uint64_t npages;
    const struct memslot *slot;
};

/* The library asserts the same of its side. C99 has no assertion of its own. */
#if defined(__cplusplus)
#define MEMSLOTS_ASSERT(name, condition) static_assert(condition, #condition)
#elif defined(__STDC_VERSION__) && __STDC_VERSION__ >= 201112L
#define MEMSLOTS_ASSERT(name, condition) _Static_assert(condition, #condition)
#else
#define MEMSLOTS_ASSERT(name, condition) typedef char memslots_##name[(condition) ? 1 : -1]
#endif
MEMSLOTS_ASSERT(is_64_bit, sizeof(void *) == 8);
MEMSLOTS_ASSERT(seq_at, offsetof(struct memslots_reader_hot, seq) == 0);
MEMSLOTS_ASSERT(key_at, offsetof(struct memslots_reader_hot, key) == 8);
MEMSLOTS_ASSERT(base_gfn_at, offsetof(struct memslots_reader_hot, base_gfn) == 16);
MEMSLOTS_ASSERT(npages_at, offsetof(struct memslots_reader_hot, npages) == 24);
MEMSLOTS_ASSERT(slot_at, offsetof(struct memslots_reader_hot, slot) == 32);
#undef MEMSLOTS_ASSERT

/*
 * memslots_find_gfn, with the last-used slot looked at in the caller: a gfn of the slot that the
 * reader found last costs one load and two compares. Same contract; `reader` is not NULL.
 */
static inline const struct memslot *memslots_find_gfn_inline(struct memslots_reader *reader,
                                                             uint16_t as_id, uint64_t gfn)
{
    const struct memslots_reader_hot *hot = (const struct memslots_reader_hot *)(void *)reader;

    if (__atomic_load_n(hot->seq, __ATOMIC_ACQUIRE) + as_id == hot->key &&
        gfn - hot->base_gfn < hot->npages) {
        return hot->slot;
    }
    return memslots_find_gfn(reader, as_id, gfn);
}

#endif /* MEMSLOTS_H */
