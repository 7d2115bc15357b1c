/* What a folder shows of a listing, as bytes; see annex.h. */
#include "fs/annex.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "client/base/buf.h"
#include "client/base/cleanup.h"
#include "client/base/index.h"
#include "client/base/sum.h"

#define ANNEX_MAGIC UINT64_C(0x3178656e6e617373) /* "ssannex1", and tells a machine of another byte order */
#define ANNEX_BYTES_MAX (1UL << 30)

struct head {
	uint64_t magic;
	uint64_t probe; /* tells whether the tables' hashes are still these */
	int64_t mark;
	uint32_t documents, others;
	uint32_t names_room, names_used, inos_room, inos_used;
	uint64_t sum; /* of the head, with 0 here, and all that follows */
};

/* One of the others; its name and its document's id follow, each with its NUL. */
struct other {
	uint64_t ino;
	int64_t mtime_ns, attached_wall_ms, learned_bytes;
	uint32_t was_there_before, is_gone;
};

static uint64_t probe(void)
{
	return index_hash_text("0f1e2d3c") ^ index_hash_number(4711);
}

static uint64_t sum_of(struct head head, const void *rest, size_t len)
{
	head.sum = 0;
	return sum_bytes(sum_bytes(ANNEX_MAGIC, &head, sizeof(head)), rest, len);
}

static void add_other(struct buf *b, const struct known_entry *k)
{
	const struct other o = { .ino = k->ino,
				 .mtime_ns = k->mtime_ns,
				 .attached_wall_ms = k->attached_wall_ms,
				 .learned_bytes = k->learned_bytes,
				 .was_there_before = k->was_there_before,
				 .is_gone = k->is_gone };

	buf_add_bytes(b, &o, sizeof(o));
	buf_add_bytes(b, k->name, strlen(k->name) + 1);
	buf_add_bytes(b, k->document_id, strlen(k->document_id) + 1);
}

int annex_pack(struct resting *rest, const struct known_entry *others, int count, int64_t mark, void **ret,
	       size_t *ret_len)
{
	CLEANUP(buf_release) struct buf b = BUF(ANNEX_BYTES_MAX);
	struct head head = { .magic = ANNEX_MAGIC,
			     .probe = probe(),
			     .mark = mark,
			     .documents = (uint32_t)listing_count(rest->of),
			     .others = (uint32_t)count };

	if (resting_build_tables(rest) < 0)
		return -ENOMEM;
	head.names_room = rest->names.room;
	head.names_used = rest->names.used;
	head.inos_room = rest->inos.room;
	head.inos_used = rest->inos.used;
	buf_add_bytes(&b, &head, sizeof(head));
	buf_add_bytes(&b, rest->words, head.documents * sizeof(*rest->words));
	buf_add_bytes(&b, rest->names.at, (size_t)head.names_room * SLOT_BYTES);
	buf_add_bytes(&b, rest->inos.at, (size_t)head.inos_room * SLOT_BYTES);
	for (int i = 0; i < count; i++)
		add_other(&b, &others[i]);
	if (!buf_text(&b))
		return -ENOMEM;
	head.sum = sum_of(head, b.data + sizeof(head), b.len - sizeof(head));
	memcpy(b.data, &head, sizeof(head));
	*ret_len = b.len;
	*ret = buf_take(&b);
	return 0;
}

/* What is left to be read. */
struct reader {
	const char *at;
	size_t left;
};

static bool take(struct reader *r, void *ret, size_t len)
{
	if (len > r->left)
		return false;
	memcpy(ret, r->at, len);
	r->at += len;
	r->left -= len;
	return true;
}

static const char *take_text(struct reader *r)
{
	const char *text = r->at, *zero = r->left ? memchr(text, 0, r->left) : NULL;

	if (!zero)
		return NULL;
	r->left -= (size_t)(zero + 1 - text);
	r->at = zero + 1;
	return text;
}

static bool take_other(struct reader *r, struct known_entry *ret)
{
	struct other o;

	if (!take(r, &o, sizeof(o)))
		return false;
	*ret = (struct known_entry){ .ino = o.ino,
				     .name = take_text(r),
				     .document_id = take_text(r),
				     .mtime_ns = o.mtime_ns,
				     .attached_wall_ms = o.attached_wall_ms,
				     .was_there_before = o.was_there_before,
				     .learned_bytes = o.learned_bytes,
				     .is_gone = o.is_gone };
	return ret->name && ret->document_id;
}

static bool others_are_sound(struct reader r, uint32_t count)
{
	struct known_entry k;

	for (uint32_t i = 0; i < count; i++)
		if (!take_other(&r, &k))
			return false;
	return r.left == 0;
}

static int take_tables(struct reader *r, const struct head *head, struct resting *rest)
{
	if ((uint64_t)head->documents * sizeof(*rest->words) +
		    ((uint64_t)head->names_room + head->inos_room) * SLOT_BYTES >
	    r->left)
		return -EBADMSG;
	if (slots_new(head->names_room, &rest->names) < 0 || slots_new(head->inos_room, &rest->inos) < 0)
		return -ENOMEM;
	rest->names.used = head->names_used;
	rest->inos.used = head->inos_used;
	bool is_whole = take(r, rest->words, head->documents * sizeof(*rest->words)) &&
			take(r, rest->names.at, (size_t)head->names_room * SLOT_BYTES) &&
			take(r, rest->inos.at, (size_t)head->inos_room * SLOT_BYTES);
	return is_whole && resting_is_sound(rest) ? 0 : -EBADMSG;
}

int annex_unpack(const void *bytes, size_t len, struct listing *of, int64_t mark, struct resting *ret,
		 void (*each)(void *arg, const struct known_entry *e), void *arg)
{
	struct reader r = { bytes, len };
	struct resting rest = { 0 };
	struct head head;
	struct known_entry k;

	if (!take(&r, &head, sizeof(head)) || head.magic != ANNEX_MAGIC || head.probe != probe() ||
	    head.documents != (uint32_t)listing_count(of))
		return -EBADMSG;
	if (head.mark != mark)
		return -ESTALE;
	if (sum_of(head, r.at, r.left) != head.sum)
		return -EBADMSG;
	if (resting_begin(&rest, of) < 0)
		return -ENOMEM;
	int result = take_tables(&r, &head, &rest);
	if (result == 0 && !others_are_sound(r, head.others))
		result = -EBADMSG;
	if (result < 0) {
		resting_release(&rest);
		return result;
	}
	while (take_other(&r, &k))
		each(arg, &k);
	*ret = rest;
	return 0;
}
