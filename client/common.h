/* What backends do alike: small helpers for their authors. Threads: any. */
#pragma once

#include "client/backend_impl.h"
#include "client/limit.h"

/* As if nothing had been asked yet: after a side question whose failure does not matter. */
void call_forget_fault(struct call *call);
/* -ENOMEM, with a fault that blames nobody. */
int call_no_memory(struct call *call);

bool session_list_has(const struct session_list *l, const char *id);
/* NULL is equal to NULL. */
bool text_is_equal(const char *a, const char *b);
/* listing_builder_finish() of a builder that stands in a CLEANUP variable, which is NULL afterwards. */
int listing_builder_take(struct listing_builder **b, int64_t asked_ms, int64_t as_of_wall_ms, struct listing **ret);
/* The upload's ticket is this text from now on. -ENOMEM: it keeps the one it had. */
int upload_set_ticket(struct upload *u, struct buf *text);
/* A line about the limit, for people; span: "this minute". */
void limit_describe(struct limit *l, const char *span, struct buf *ret);
