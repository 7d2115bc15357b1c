/* What Raydocs and Rossum would otherwise both have; see common.h. */
#include "client/common.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

void call_forget_fault(struct call *call)
{
	memset(&call->fault, 0, sizeof(call->fault));
	call->fault.retry_after_ms = -1;
}

int call_no_memory(struct call *call)
{
	call->fault.kind = FAULT_NONE;
	return -ENOMEM;
}

bool session_list_has(const struct session_list *l, const char *id)
{
	for (int i = 0; i < l->count; i++) {
		if (strcmp(l->items[i].id, id) == 0)
			return true;
	}
	return false;
}

bool text_is_equal(const char *a, const char *b)
{
	return a && b ? strcmp(a, b) == 0 : a == b;
}

int listing_builder_take(struct listing_builder **b, int64_t asked_ms, int64_t as_of_wall_ms, struct listing **ret)
{
	struct listing_builder *given = *b;

	*b = NULL;
	return listing_builder_finish(given, asked_ms, as_of_wall_ms, ret);
}

int upload_set_ticket(struct upload *u, struct buf *text)
{
	char *line = buf_take(text);

	if (!line)
		return -ENOMEM;
	free(u->ticket);
	u->ticket = line;
	return 0;
}

void limit_describe(struct limit *l, const char *span, struct buf *ret)
{
	struct limit_view limit;

	limit_look(l, &limit);
	if (limit.rate < 0)
		buf_add(ret, "limit: none of ours");
	else
		buf_addf(ret, "limit: %d of %d requests used in %s", limit.used, limit.rate, span);
	if (limit.rate < limit.usual_rate)
		buf_addf(ret, " (usually %d; the service said there were too many)", limit.usual_rate);
	if (limit.foreign > 0)
		buf_addf(ret, ", %d by others at this address", limit.foreign);
	if (limit.waiting > 0)
		buf_addf(ret, ", %d wait in line", limit.waiting);
	if (limit.pause_ms > 0)
		buf_addf(ret, "; the service asked to wait for %lld s", (long long)(limit.pause_ms + 999) / 1000);
	buf_add(ret, "\n");
}
