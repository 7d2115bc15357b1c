/* Pure: the names a session's folder shows, and what stands behind each.
 *
 * A document that has an entry keeps it. One seen for the first time gets its title made safe; when that name is taken by
 * another entry (shown, or gone and keeping its name) a part of its id goes before the extension, as long as it takes. Among documents seen for the
 * first time together the older one chooses first. No network, no disk, no kernel; the tree's lock is held. */
#pragma once

#include "fs/node.h"

/* What came of applying a listing. The arrays are the caller's: layout_release(). */
struct layout_change {
	struct entry **appeared; /* names that were not shown before; held */
	struct entry **left;     /* names that are not shown any more; held */
	struct entry **altered;  /* shown as before, with another size or time */
	int appeared_count, left_count, altered_count;
};

/* Makes the folder show the listing (a reference is taken). next_ino hands out inode numbers (0: none to be had). -ENOMEM, -EIO: the folder may
 * show some of it; apply again. */
int layout_apply(struct tree *t, struct folder *f, struct listing *l, uint64_t (*next_ino)(void *arg), void *arg,
		 struct layout_change *ret);
/* The same for one page of a walk under way: only adds. */
int layout_apply_page(struct tree *t, struct folder *f, struct listing *page, uint64_t (*next_ino)(void *arg), void *arg,
		      struct layout_change *ret);
/* Drops the holds too. */
void layout_release(struct tree *t, struct layout_change *c);
