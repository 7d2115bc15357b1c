/* What a folder shows of a listing, as bytes that are kept beside the listing: who rests in it, and what else the state knows of its
 * names. A folder of 100,000 documents comes back from them in milliseconds, where reading its names from the state takes seconds.
 *
 * The state remains what holds: each annex carries the state's mark, and one with another mark than the state has now is of no use. Pure. */
#pragma once

#include <stddef.h>

#include "fs/resting.h"
#include "fs/state.h"

/* rest: of the listing, with nobody awake in it; it gets its tables here. *ret is the caller's. -ENOMEM. */
int annex_pack(struct resting *rest, const struct known_entry *others, int count, int64_t mark, void **ret, size_t *ret_len);
/* The opposite, for that very listing. `each` is called for the others, with borrowed texts, when all is known to be sound. -ESTALE: it is of
 * another mark; -EBADMSG: damaged, of another version or another listing; -ENOMEM. */
int annex_unpack(const void *bytes, size_t len, struct listing *of, int64_t mark, struct resting *ret,
		 void (*each)(void *arg, const struct known_entry *e), void *arg);
