/* sessionfs-sandbox: the services on loopback, for a person. Options, start, say where, wait for the end. */
#include "tests/sandbox/sandbox.h"

#include <errno.h>
#include <fcntl.h>
#include <getopt.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static const char usage[] =
	"usage: sessionfs-sandbox [options]\n"
	"\n"
	"  --port N --storage-port N --rossum-port N --control-port N   0 or absent: any free port\n"
	"  --state DIR         keeps what there is across restarts\n"
	"  --tls               https for the services, with a certificate of its own\n"
	"  --cert F --key F    or with this one (PEM)\n"
	"  --make-cert DIR     puts its own cert.pem and key.pem there; implies --tls\n"
	"  --seed-demo         an account to look at\n"
	"  --latency MS        before each answer\n"
	"  --rate N|off        API requests a minute (100); off: Rossum's are not limited either\n"
	"  --rossum-rate N|off Rossum's requests a second (10)\n"
	"  --token-file FILE   where the demo's token is written, readable by you alone\n"
	"  --rossum-token-file FILE   where Rossum's is\n"
	"  --ports-file FILE   API_URL=, STORAGE_URL=, CONTROL_URL=, TOKEN_FILE=, CA_FILE=, ROSSUM_URL=,\n"
	"                      ROSSUM_TOKEN_FILE= lines, once it listens\n"
	"  --help\n"
	"\n"
	"It stays in the foreground until SIGTERM or SIGINT.\n"
	"\n";

struct wishes {
	struct sandbox_options options;
	const char *token_file, *rossum_token_file, *ports_file;
	bool demo, rossum_is_set; /* its rate */
};

static void print_help(void)
{
	char *more = sandbox_describe();
	printf("%s%s", usage, more);
	free(more);
}

static int parse_number(const char *option, const char *text, long max, long *ret)
{
	char *end = NULL;
	errno = 0;
	long n = strtol(text, &end, 10);
	if (*text == 0 || *end != 0 || errno != 0 || n < 0 || n > max) {
		fprintf(stderr, "sessionfs-sandbox: --%s: '%s' is no number up to %ld\n", option, text, max);
		return -EINVAL;
	}
	*ret = n;
	return 0;
}

static int parse_options(int argc, char **argv, struct wishes *w)
{
	static const struct option known[] = {
		{ "port", required_argument, NULL, 'p' },
		{ "storage-port", required_argument, NULL, 's' },
		{ "control-port", required_argument, NULL, 'c' },
		{ "rossum-port", required_argument, NULL, 'o' },
		{ "state", required_argument, NULL, 'd' },
		{ "tls", no_argument, NULL, 't' },
		{ "cert", required_argument, NULL, 'C' },
		{ "key", required_argument, NULL, 'K' },
		{ "make-cert", required_argument, NULL, 'm' },
		{ "seed-demo", no_argument, NULL, 'D' },
		{ "latency", required_argument, NULL, 'l' },
		{ "rate", required_argument, NULL, 'r' },
		{ "rossum-rate", required_argument, NULL, 'R' },
		{ "token-file", required_argument, NULL, 'T' },
		{ "rossum-token-file", required_argument, NULL, 'O' },
		{ "ports-file", required_argument, NULL, 'P' },
		{ "help", no_argument, NULL, 'h' },
		{ 0 },
	};
	struct sandbox_options *o = &w->options;
	int c, index = 0, r = 0;
	while ((c = getopt_long(argc, argv, "", known, &index)) != -1 && r == 0) {
		long n = 0;
		if (strchr("pscol", c) != NULL || (strchr("rR", c) != NULL && strcmp(optarg, "off") != 0))
			r = parse_number(known[index].name, optarg, strchr("psco", c) != NULL ? 65535 : 100000000, &n);
		switch (c) {
		case 'p':
			o->api_port = (int)n;
			break;
		case 's':
			o->storage_port = (int)n;
			break;
		case 'c':
			o->control_port = (int)n;
			break;
		case 'o':
			o->rossum_port = (int)n;
			break;
		case 'd':
			o->state_dir = optarg;
			break;
		case 't':
			o->tls = true;
			break;
		case 'C':
			o->cert_file = optarg;
			break;
		case 'K':
			o->key_file = optarg;
			break;
		case 'm':
			o->cert_dir = optarg;
			o->tls = true;
			break;
		case 'D':
			w->demo = true;
			break;
		case 'l':
			o->latency_ms = n;
			break;
		case 'r':
			o->rate = n;
			if (n == 0 && !w->rossum_is_set)
				o->rossum_rate = 0;
			break;
		case 'R':
			o->rossum_rate = n;
			w->rossum_is_set = true;
			break;
		case 'T':
			w->token_file = optarg;
			break;
		case 'O':
			w->rossum_token_file = optarg;
			break;
		case 'P':
			w->ports_file = optarg;
			break;
		case 'h':
			print_help();
			exit(0);
		default:
			r = -EINVAL;
		}
	}
	if (r == 0 && (optind != argc || (o->cert_file == NULL) != (o->key_file == NULL)))
		r = -EINVAL;
	if (r < 0)
		fputs("Try sessionfs-sandbox --help\n", stderr);
	return r;
}

/* Whole or not at all: whoever waits for the file may read it as soon as it is there. */
static int write_file(const char *path, const char *text)
{
	char *fresh = NULL;
	if (asprintf(&fresh, "%s.new", path) < 0)
		return -ENOMEM;
	unlink(fresh); /* an old one may have other permissions */
	int fd = open(fresh, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0600);
	size_t bytes = strlen(text);
	bool ok = fd >= 0 && write(fd, text, bytes) == (ssize_t)bytes;
	ok = fd >= 0 && close(fd) == 0 && ok && rename(fresh, path) == 0;
	int r = ok ? 0 : -errno;
	if (!ok)
		fprintf(stderr, "sessionfs-sandbox: %s: %s\n", path, strerror(errno));
	free(fresh);
	return r;
}

/* path or token may be NULL: nothing is written then. */
static int write_token(const char *path, const char *token)
{
	char *line = NULL;
	if (path == NULL || token == NULL)
		return 0;
	int r = asprintf(&line, "%s\n", token) < 0 ? -ENOMEM : write_file(path, line);
	free(line);
	return r;
}

static const char *or_nothing(const char *text)
{
	return text == NULL ? "" : text;
}

static int announce(struct sandbox *s, const struct wishes *w)
{
	char *token = NULL, *text = NULL, *ports = NULL, *rossum_token = NULL, *rossum_text = NULL;
	int r = 0;
	if (w->demo)
		r = sandbox_seed_demo(s, &token, &text);
	if (r == 0 && w->demo)
		r = sandbox_seed_rossum_demo(s, &rossum_token, &rossum_text);
	if (r == 0)
		r = write_token(w->token_file, token);
	if (r == 0)
		r = write_token(w->rossum_token_file, rossum_token);
	const char *ca = sandbox_cert_file(s);
	if (r == 0 && asprintf(&ports,
			       "API_URL=%s\nSTORAGE_URL=%s\nCONTROL_URL=%s\nTOKEN_FILE=%s\nCA_FILE=%s\n"
			       "ROSSUM_URL=%s/api/v1\nROSSUM_TOKEN_FILE=%s\n",
			       sandbox_url(s, "api"), sandbox_url(s, "storage"), sandbox_url(s, "control"),
			       or_nothing(w->token_file), or_nothing(ca), sandbox_url(s, "rossum"),
			       or_nothing(w->rossum_token_file)) < 0)
		r = -ENOMEM;
	if (r == 0) {
		printf("%s", ports);
		if (text != NULL)
			printf("%s", text);
		if (rossum_text != NULL)
			printf("%s", rossum_text);
		/* The token opens nothing but this sandbox; shown only where no file was asked for. */
		if (token != NULL && w->token_file == NULL)
			printf("token      %s\n", token);
		if (rossum_token != NULL && w->rossum_token_file == NULL)
			printf("rossum     %s\n", rossum_token);
		fflush(stdout);
	}
	if (r == 0 && w->ports_file != NULL)
		r = write_file(w->ports_file, ports);
	free(ports);
	free(token);
	free(text);
	free(rossum_token);
	free(rossum_text);
	return r;
}

int main(int argc, char **argv)
{
	struct wishes w = { .options = { .rate = 100, .rossum_rate = 10 } };
	if (parse_options(argc, argv, &w) < 0)
		return 2;
	sigset_t ends;
	int signal_number;
	sigemptyset(&ends);
	sigaddset(&ends, SIGTERM);
	sigaddset(&ends, SIGINT);
	sigaddset(&ends, SIGHUP);
	pthread_sigmask(SIG_BLOCK, &ends, NULL); /* before the threads, which inherit it */
	signal(SIGPIPE, SIG_IGN);

	struct sandbox *s = NULL;
	int r = sandbox_start(&w.options, &s);
	if (r < 0) {
		fprintf(stderr, "sessionfs-sandbox: cannot start: %s\n", strerror(-r));
		return 1;
	}
	r = announce(s, &w);
	if (r == 0)
		sigwait(&ends, &signal_number);
	sandbox_stop(s);
	if (w.ports_file != NULL)
		unlink(w.ports_file); /* nobody listens there any more */
	return r == 0 ? 0 : 1;
}
