/* All of Raydocs: its URLs, JSON, authentication, paging, and its own words. A session is a session there too. */
#include "client/backend_impl.h"

#include <ctype.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>

struct raydocs {
	struct backend self;
};

static const struct backend_option options[] = {
	{ "naming", "auto|session|workspace", "auto",
	  "how a copied-in document gets its name; workspace gives it to the service and needs documents-write", false },
	{ NULL },
};

static const struct backend_caps caps = {
	.service = "raydocs",
	.title = "Raydocs",
	.token_help = "Make a token in the Raydocs dashboard under API Keys and tick sessions-read, sessions-write, "
		      "templates-read and workspaces-read (documents-write too, for naming=workspace).",
	.default_url = "https://api.raydocs.com",
	.formats = "pdf docx doc png jpg jpeg tiff pptx",
	.sessions = SESSIONS_GUESSED,
	.creates_sessions = true,
	.attaches = true,
	.attach_keeps_id = true,
	.detaches = true,
	.knows_sizes = true,
	.knows_hashes = true,
	.keeps_names = false,
	.reuses_bytes = true,
	.store_has_effect = false,
	.attach_batch_max = 20,
	.key_lifetime_ms = INT64_C(24) * 3600 * 1000,
	.rate_per_min = 100,
	.folder_page = 15,
};

static int raydocs_open(const struct backend_config *config, struct buf *why, struct backend **ret)
{
	struct raydocs *r = calloc(1, sizeof(*r));

	if (!r)
		return -ENOMEM;
	r->self.caps = caps;
	*ret = &r->self;
	return 0;
}

static void raydocs_close(struct backend *b)
{
	free(b);
}

const struct backend_ops raydocs_backend = {
	.name = "raydocs",
	.options = options,
	.open = raydocs_open,
	.close = raydocs_close,
};
