/* fs/options.c: what is accepted, from where, which one prevails, and what a mistake is told. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include <errno.h>
#include <fcntl.h>
#include <ftw.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "fs/options.h"

#define COUNT(a) (sizeof(a) / sizeof((a)[0]))

static char dir[64];
static char path[256];

static const char *in_dir(const char *name)
{
	(void)snprintf(path, sizeof(path), "%s/%s", dir, name);
	return path;
}

static int remove_one(const char *name, const struct stat *st, int kind, struct FTW *at)
{
	return remove(name);
}

static int begin(void **state)
{
	static const char *const names[] = { "STATE_DIRECTORY",       "CACHE_DIRECTORY", "RUNTIME_DIRECTORY",
					     "CREDENTIALS_DIRECTORY", "SESSIONFS_TOKEN", "XDG_STATE_HOME",
					     "XDG_CACHE_HOME",        "XDG_RUNTIME_DIR" };

	(void)snprintf(dir, sizeof(dir), "/tmp/test_options.XXXXXX");
	if (!mkdtemp(dir))
		return -1;
	for (size_t i = 0; i < COUNT(names); i++)
		(void)unsetenv(names[i]);
	(void)setenv("HOME", dir, 1);
	(void)setenv("XDG_CONFIG_HOME", in_dir("config"), 1);
	(void)setenv("XDG_STATE_HOME", in_dir("state"), 1);
	(void)setenv("XDG_CACHE_HOME", in_dir("cache"), 1);
	(void)setenv("XDG_RUNTIME_DIR", in_dir("run"), 1);
	(void)mkdir(in_dir("config"), 0700);
	(void)mkdir(in_dir("config/sessionfs"), 0700);
	return mkdir(in_dir("mnt"), 0700);
}

static int end(void **state)
{
	return nftw(dir, remove_one, 8, FTW_DEPTH | FTW_PHYS);
}

static void write_text(const char *name, const char *text, mode_t mode)
{
	int fd = open(in_dir(name), O_WRONLY | O_CREAT | O_TRUNC, mode);

	assert_true(fd >= 0);
	assert_int_equal(write(fd, text, strlen(text)), (ssize_t)strlen(text));
	close(fd);
	assert_int_equal(chmod(path, mode), 0);
}

static void write_config(const char *text)
{
	write_text("config/sessionfs/config", text, 0600);
}

/* sessionfs raydocs /tmp/... -o text; text NULL: none. */
static int try_read(const char *source, const char *text, struct buf *why, struct options *o)
{
	char mountpoint[256];
	(void)snprintf(mountpoint, sizeof(mountpoint), "%s/mnt", dir);
	char *argv[] = { (char *)source, mountpoint, (char *)"-o", (char *)text };

	return options_read(text ? 4 : 2, argv, true, why, o);
}

static struct options read_good(const char *source, const char *text)
{
	struct options o = { 0 };
	struct buf why = BUF(2000);

	if (try_read(source, text, &why, &o) != 0)
		fail_msg("%s", buf_text(&why));
	assert_int_equal(why.len, 0);
	buf_release(&why);
	return o;
}

static void assert_refused(const char *source, const char *text, const char *sentence)
{
	struct options o = { 0 };
	struct buf why = BUF(2000);

	assert_int_equal(try_read(source, text, &why, &o), -EINVAL);
	assert_null(o.source);
	if (!strstr(buf_text(&why), sentence))
		fail_msg("'%s' is told: %s", text ? text : "", buf_text(&why));
	buf_release(&why);
}

/* ---- defaults and values ----------------------------------------------------------------------------------- */

static void without_options_the_documented_defaults_hold(void **state)
{
	struct options o = read_good("raydocs", NULL);

	assert_string_equal(o.service, "raydocs");
	assert_null(o.url);
	assert_int_equal(o.discover, DISCOVER_AUTO);
	assert_int_equal(o.ttl_ms, 30000);
	assert_int_equal(o.stale_ms, 3600000);
	assert_int_equal(o.upload, UPLOAD_AT_CLOSE);
	assert_int_equal(o.close_timeout_ms, 60000);
	assert_int_equal(o.settle_ms, 0);
	assert_int_equal(o.remove, REMOVE_RECENT);
	assert_false(o.views_listed);
	assert_int_equal(o.start, START_AUTO);
	assert_int_equal(o.rate_per_min, 0);
	assert_int_equal(o.cache_size_bytes, 1 << 30);
	assert_string_equal(o.log_level, "info");
	assert_int_equal(o.umask, 077);
	assert_int_equal(o.uid, getuid());
	assert_int_equal(o.gid, getgid());
	assert_false(o.allow_other || o.read_only || o.foreground || o.debug_fuse || o.noxattr);
	assert_int_equal(o.fuse_args.count + o.backend.count + o.sessions.count + o.queues.count, 0);
	options_release(&o);
	options_release(&o); /* a released one is empty */
}

static void each_option_is_taken(void **state)
{
	struct options o =
		read_good("raydocs", "url=http://127.0.0.1:8080/,session=a,session=b,queue=7,template=Bills\\, "
				     "2024,discover=no,ttl=250ms,stale=2h,"
				     "upload=background,close_timeout=5m,settle=10,ignore=*.bak,formats=+xlsx\\,-doc,"
				     "remove=yes,views=listed,start=wait,"
				     "rate=90/min,cache_size=500M,cafile=/c.pem,proxy=http://"
				     "p:1,log=debug,uid=12,gid=34,umask=027,allow_other,ro,noxattr,"
				     "username=me,token_file=/t,state_dir=/s,cache_dir=/c,naming=workspace");

	assert_string_equal(o.url, "http://127.0.0.1:8080");
	assert_int_equal(o.sessions.count, 2);
	assert_string_equal(o.sessions.items[1], "b");
	assert_string_equal(o.queues.items[0], "7");
	assert_string_equal(o.template_name, "Bills, 2024");
	assert_int_equal(o.discover, DISCOVER_NO);
	assert_int_equal(o.ttl_ms, 250);
	assert_int_equal(o.stale_ms, 7200000);
	assert_int_equal(o.upload, UPLOAD_IN_BACKGROUND);
	assert_int_equal(o.close_timeout_ms, 300000);
	assert_int_equal(o.settle_ms, 10000);
	assert_string_equal(o.ignore, "*.bak");
	assert_string_equal(o.formats, "+xlsx,-doc");
	assert_int_equal(o.remove, REMOVE_YES);
	assert_true(o.views_listed);
	assert_int_equal(o.start, START_WAIT);
	assert_int_equal(o.rate_per_min, 90);
	assert_int_equal(o.cache_size_bytes, 500 << 20);
	assert_string_equal(o.cafile, "/c.pem");
	assert_string_equal(o.proxy, "http://p:1");
	assert_string_equal(o.log_level, "debug");
	assert_int_equal(o.uid, 12);
	assert_int_equal(o.gid, 34);
	assert_int_equal(o.umask, 027);
	assert_true(o.allow_other && o.read_only && o.noxattr);
	assert_string_equal(o.username, "me");
	assert_string_equal(o.token_file, "/t");
	assert_string_equal(o.state_dir, "/s");
	assert_string_equal(o.cache_dir, "/c");
	assert_int_equal(o.backend.count, 1);
	assert_string_equal(o.backend.items[0], "naming=workspace");
	options_release(&o);
}

static void names_of_users_and_groups_are_looked_up(void **state)
{
	struct options o = read_good("raydocs", "uid=root,gid=root,rate=off");

	assert_int_equal(o.uid, 0);
	assert_int_equal(o.gid, 0);
	assert_int_equal(o.rate_per_min, -1);
	options_release(&o);
}

static void with_allow_other_the_files_are_readable_unless_told_otherwise(void **state)
{
	struct options o = read_good("raydocs", "allow_other");
	assert_int_equal(o.umask, 022);
	options_release(&o);
	o = read_good("raydocs", "allow_other,umask=0077");
	assert_int_equal(o.umask, 077);
	options_release(&o);
}

static void the_last_of_a_single_option_prevails_and_repeatable_ones_add_up(void **state)
{
	struct options o = read_good("raydocs", "ttl=1s,session=a,naming=auto,ro,ttl=2s,session=b,naming=session,rw");

	assert_int_equal(o.ttl_ms, 2000);
	assert_int_equal(o.sessions.count, 2);
	assert_int_equal(o.backend.count, 1);
	assert_string_equal(o.backend.items[0], "naming=session");
	assert_false(o.read_only);
	options_release(&o);
}

static void a_wrong_value_is_refused_in_a_sentence_that_shows_it(void **state)
{
	static const struct {
		const char *text, *sentence;
	} cases[] = {
		{ "ttl=x", "'ttl=x' is not a duration such as 30s" },
		{ "ttl=-1s", "'ttl=-1s' is not a duration" },
		{ "ttl=1.5s", "is not a duration" },
		{ "ttl=99999999999999999999", "is not a duration" },
		{ "ttl=9999999999h", "is not a duration" },
		{ "ttl", "'ttl' needs a value: ttl=TIME" },
		{ "ttl=", "'ttl' needs a value" },
		{ "cache_size=1Q", "'cache_size=1Q' is not a size such as 500M" },
		{ "cache_size=9999999999T", "is not a size" },
		{ "rate=0", "is not a rate such as 90/min, or off" },
		{ "rate=90/h", "is not a rate" },
		{ "upload=later", "'upload=later' is not close|background" },
		{ "remove=", "needs a value" },
		{ "views=all", "is not named|listed" },
		{ "log=loud", "'log=loud' is not error|warning|info|debug" },
		{ "umask=999", "is not an octal number such as 022" },
		{ "umask=07777", "is not an octal number" },
		{ "uid=nobody-of-that-name", "is not a user of this machine" },
		{ "gid=4294967295", "is not a group of this machine" },
		{ "ro=yes", "'ro' takes no value" },
		{ "tttl=3s", "unknown option 'tttl'; did you mean 'ttl'?" },
		{ "sesion=3", "did you mean 'session'?" },
		{ "namming=auto", "did you mean 'naming'?" },
		{ "something_else=3", "unknown option 'something_else'; sessionfs -h lists them" },
		{ "token=abc", "use token_file=" },
		{ "token_command=cat x", "belongs into a configuration file" },
		{ "url=ftp://x", "is not an address" },
		{ "url=https://", "is not an address" },
		{ "url=https://a@b", "is not an address" },
		{ "url=http://example.com", "would send the token unencrypted" },
		{ "url=http://127.evil.com", "would send the token unencrypted" },
		{ "url=http://localhost.evil.com", "would send the token unencrypted" },
		{ "url=http://128.0.0.1", "would send the token unencrypted" },
		{ "service=acme", "'service=acme' is not one of: " },
	};

	for (size_t i = 0; i < COUNT(cases); i++)
		assert_refused("raydocs", cases[i].text, cases[i].sentence);
}

static void a_token_is_never_repeated_in_the_refusal(void **state)
{
	struct options o = { 0 };
	struct buf why = BUF(2000);

	assert_int_equal(try_read("raydocs", "token=sesame", &why, &o), -EINVAL);
	assert_null(strstr(buf_text(&why), "sesame"));
	buf_release(&why);
}

static void loopback_may_go_without_tls(void **state)
{
	static const char *const good[] = { "url=http://127.0.0.1", "url=http://127.8.9.1:80/x", "url=http://[::1]:80",
					    "url=http://localhost:1", "url=https://example.com" };

	for (size_t i = 0; i < COUNT(good); i++) {
		struct options o = read_good("raydocs", good[i]);
		options_release(&o);
	}
}

/* ---- fstab and FUSE ---------------------------------------------------------------------------------------- */

static void words_of_mount_and_fuse_are_swallowed_or_passed_on(void **state)
{
	struct options o =
		read_good("raydocs",
			  "rw,noauto,_netdev,user,nofail,x-systemd.automount,x-y=z,comment=a\\,b,defaults,nodev,nosuid,"
			  "fsname=a\\,b,auto_unmount,max_read=131072");

	assert_int_equal(o.fuse_args.count, 5);
	assert_string_equal(o.fuse_args.items[0], "-onodev");
	assert_string_equal(o.fuse_args.items[1], "-onosuid");
	assert_string_equal(o.fuse_args.items[2], "-ofsname=a\\,b");
	assert_string_equal(o.fuse_args.items[3], "-oauto_unmount");
	assert_string_equal(o.fuse_args.items[4], "-omax_read=131072");
	options_release(&o);
	assert_refused("raydocs", "nodevv", "did you mean 'nodev'?");
}

static void the_switches_are_understood_in_any_place(void **state)
{
	struct options o = { 0 };
	struct buf why = BUF(2000);
	char *argv[] = { (char *)"-f", (char *)"-ottl=1s", (char *)"raydocs", (char *)"-o", (char *)"ro",
			 path,         (char *)"-d" };

	(void)in_dir("mnt");
	assert_int_equal(options_read(7, argv, true, &why, &o), 0);
	assert_true(o.foreground && o.debug_fuse && o.read_only);
	assert_int_equal(o.ttl_ms, 1000);
	assert_string_equal(o.mountpoint, in_dir("mnt"));
	options_release(&o);
	assert_int_equal(options_read(2, (char *[]){ (char *)"-x", (char *)"raydocs" }, true, &why, &o), -EINVAL);
	assert_non_null(strstr(buf_text(&why), "unknown switch '-x'"));
	buf_clear(&why);
	assert_int_equal(options_read(1, (char *[]){ (char *)"raydocs" }, true, &why, &o), -EINVAL);
	assert_non_null(strstr(buf_text(&why), "MOUNTPOINT is missing"));
	buf_clear(&why);
	assert_int_equal(options_read(0, NULL, true, &why, &o), -EINVAL);
	assert_non_null(strstr(buf_text(&why), "SOURCE and MOUNTPOINT are missing"));
	buf_clear(&why);
	assert_int_equal(options_read(3, (char *[]){ (char *)"raydocs", (char *)"/tmp", (char *)"x" }, true, &why, &o),
			 -EINVAL);
	assert_non_null(strstr(buf_text(&why), "one word too many"));
	buf_clear(&why);
	assert_int_equal(options_read(2, (char *[]){ (char *)"raydocs", (char *)"-o" }, false, &why, &o), -EINVAL);
	buf_clear(&why);
	assert_int_equal(options_read(1, (char *[]){ (char *)"raydocs" }, false, &why, &o), 0);
	assert_null(o.mountpoint);
	options_release(&o);
	buf_release(&why);
}

static void a_mount_point_is_resolved_even_when_it_is_not_there(void **state)
{
	struct options o = { 0 };
	struct buf why = BUF(2000);
	char expected[300];

	assert_int_equal(chdir(dir), 0);
	assert_int_equal(options_read(2, (char *[]){ (char *)"raydocs", (char *)"gone/" }, true, &why, &o), 0);
	(void)snprintf(expected, sizeof(expected), "%s/gone", dir);
	assert_string_equal(o.mountpoint, expected);
	options_release(&o);
	assert_int_equal(options_read(2, (char *[]){ (char *)"raydocs", (char *)"no/where" }, true, &why, &o), -EINVAL);
	assert_non_null(strstr(buf_text(&why), "cannot be used"));
	assert_int_equal(chdir("/"), 0);
	buf_release(&why);
}

/* ---- the configuration file -------------------------------------------------------------------------------- */

static void a_section_gives_options_and_the_command_line_prevails(void **state)
{
	write_config("# ours\n[acme]\nservice = raydocs\n  ttl = 5s   ; short\nsession = a\nsession = b\n"
		     "token_command = cat /x\nro = yes\nnoxattr = no\nnodev =\n\n[other]\nttl = x\n");
	struct options o = read_good("acme", "ttl=7s,session=c");

	assert_string_equal(o.source, "acme");
	assert_string_equal(o.service, "raydocs");
	assert_int_equal(o.ttl_ms, 7000);
	assert_int_equal(o.sessions.count, 3);
	assert_string_equal(o.sessions.items[2], "c");
	assert_string_equal(o.token_command, "cat /x");
	assert_true(o.read_only);
	assert_false(o.noxattr);
	assert_int_equal(o.fuse_args.count, 1);
	options_release(&o);
	o = read_good("acme", NULL);
	assert_int_equal(o.ttl_ms, 5000);
	options_release(&o);
	o = read_good("raydocs", NULL); /* another section's mistake is not ours */
	assert_int_equal(o.ttl_ms, 30000);
	options_release(&o);
	assert_refused("other", NULL, "does not say which service it is");
	assert_refused("other", "service=raydocs", "[other] in the configuration: 'ttl=x' is not a duration");
	assert_refused("nobody", NULL, "'nobody' is neither a service (raydocs");
}

static void a_file_that_cannot_be_understood_is_told_with_its_line(void **state)
{
	char text[600];

	write_config("ttl = 5s\n[raydocs]\n");
	assert_refused("raydocs", NULL, "line 1: stands before any [section]");
	write_config("[raydocs]\nttl = 5s\nnonsense\n");
	assert_refused("raydocs", NULL, "line 3: neither [section] nor name = value");
	write_config("[raydocs]\ntoken_command = a ; b\n");
	assert_refused("raydocs", NULL, "line 2: a ';' begins a comment here");
	(void)snprintf(text, sizeof(text), "[raydocs]\ntoken_file = %0400d\n", 7);
	write_config(text);
	assert_refused("raydocs", NULL, "line 2: longer than");
	write_config("[raydocs]\nttll = 5s\n");
	assert_refused("raydocs", NULL, "did you mean 'ttl'?");
}

static void storing_a_key_leaves_the_rest_of_the_file_alone(void **state)
{
	struct buf why = BUF(2000), where = BUF(2000);
	char text[500] = "";

	write_config("# mine\n[acme]\nservice=raydocs\nurl = https://old\n[other]\nurl = https://kept");
	assert_int_equal(options_store("acme", "url", "https://new", &why, &where), 0);
	assert_string_equal(buf_text(&where), in_dir("config/sessionfs/config"));
	assert_int_equal(options_store("third", "service", "raydocs", &why, NULL), 0);
	int fd = open(path, O_RDONLY);
	assert_true(read(fd, text, sizeof(text) - 1) > 0);
	close(fd);
	assert_string_equal(text, "# mine\n[acme]\nurl = https://new\nservice=raydocs\n[other]\nurl = https://kept\n\n"
				  "[third]\nservice = raydocs\n");
	struct options o = read_good("acme", NULL);
	assert_string_equal(o.url, "https://new");
	options_release(&o);
	assert_int_equal(options_store("acme", "url", "a\nb", &why, NULL), -EINVAL);
	buf_release(&why);
	buf_release(&where);
}

static void storing_makes_the_file_and_its_folder(void **state)
{
	struct buf why = BUF(2000);
	struct stat st;

	(void)setenv("XDG_CONFIG_HOME", in_dir("new/config"), 1);
	assert_int_equal(options_store("acme", "service", "raydocs", &why, NULL), 0);
	assert_int_equal(stat(in_dir("new/config/sessionfs/config"), &st), 0);
	assert_int_equal(st.st_mode & 0777, 0600);
	struct options o = read_good("acme", NULL);
	options_release(&o);
	buf_release(&why);
}

/* ---- places ------------------------------------------------------------------------------------------------ */

static void each_section_and_address_has_a_folder_of_its_own(void **state)
{
	struct options one = read_good("raydocs", NULL), same = read_good("raydocs", NULL);
	struct options other = read_good("raydocs", "url=http://127.0.0.1:1");
	write_config("[ac/me]\nservice = raydocs\n");
	struct options named = read_good("ac/me", NULL);

	assert_string_equal(one.state_dir, same.state_dir);
	assert_string_not_equal(one.state_dir, other.state_dir);
	assert_string_not_equal(one.limit_path, other.limit_path);
	assert_string_equal(one.limit_path, named.limit_path); /* the service counts them together */
	assert_ptr_equal(strstr(one.state_dir, in_dir("state/sessionfs/raydocs-")), one.state_dir);
	assert_ptr_equal(strstr(one.cache_dir, in_dir("cache/sessionfs/raydocs-")), one.cache_dir);
	assert_ptr_equal(strstr(named.state_dir, in_dir("state/sessionfs/ac_me-")), named.state_dir);
	assert_string_equal(one.state_base, in_dir("state/sessionfs"));
	options_release(&one);
	options_release(&same);
	options_release(&other);
	options_release(&named);
}

static void systemd_says_where_state_is_kept(void **state)
{
	(void)setenv("STATE_DIRECTORY", "/var/lib/x:/var/lib/y", 1);
	(void)setenv("CACHE_DIRECTORY", "/var/cache/x", 1);
	struct options o = read_good("raydocs", NULL);

	assert_ptr_equal(strstr(o.state_dir, "/var/lib/x/raydocs-"), o.state_dir);
	assert_null(strchr(o.state_dir, ':'));
	assert_ptr_equal(strstr(o.cache_dir, "/var/cache/x/raydocs-"), o.cache_dir);
	options_release(&o);
}

static void an_empty_home_is_never_the_beginning_of_a_path(void **state)
{
	(void)setenv("HOME", "", 1);
	(void)unsetenv("XDG_STATE_HOME");
	(void)unsetenv("XDG_CACHE_HOME");
	(void)unsetenv("XDG_CONFIG_HOME");
	if (geteuid() == 0) {
		struct options o = read_good("raydocs", NULL);
		assert_ptr_equal(strstr(o.state_dir, "/var/lib/sessionfs/raydocs-"), o.state_dir);
		assert_string_equal(o.stored_secret_file, "/etc/sessionfs/raydocs.token");
		options_release(&o);
	} else {
		assert_refused("raydocs", NULL, "there is no place for state_dir");
	}
	struct options o = read_good("raydocs", "state_dir=/s,cache_dir=c");
	assert_string_equal(o.state_dir, "/s");
	assert_int_equal(o.cache_dir[0], '/');
	options_release(&o);
}

static void the_folders_are_made_for_us_alone(void **state)
{
	struct options o = read_good("raydocs", NULL);
	struct buf why = BUF(2000);
	struct stat st;

	assert_int_equal(options_make_folders(&o, &why), 0);
	assert_int_equal(stat(o.state_dir, &st), 0);
	assert_int_equal(st.st_mode & 0777, 0700);
	assert_int_equal(stat(o.cache_dir, &st), 0);
	assert_int_equal(stat(in_dir("run/sessionfs"), &st), 0);
	options_release(&o);
	write_text("file", "", 0600);
	(void)setenv("XDG_STATE_HOME", in_dir("file/x"), 1);
	o = read_good("raydocs", NULL);
	assert_int_equal(options_make_folders(&o, &why), -ENOTDIR);
	assert_non_null(strstr(buf_text(&why), "cannot be made"));
	buf_release(&why);
	options_release(&o);
}

/* ---- the token --------------------------------------------------------------------------------------------- */

static void assert_token(const struct options *o, const char *expected)
{
	struct credentials c = { 0 };
	struct buf why = BUF(2000);

	if (options_read_credentials(o, &why, &c) != 0)
		fail_msg("%s", buf_text(&why));
	assert_non_null(c.token);
	assert_string_equal(secret_reveal(c.token), expected);
	assert_null(c.user);
	credentials_release(&c);
	buf_release(&why);
}

static void assert_no_token(const struct options *o, int error, const char *sentence)
{
	struct credentials c = { 0 };
	struct buf why = BUF(2000);

	assert_int_equal(options_read_credentials(o, &why, &c), error);
	assert_null(c.token);
	if (!strstr(buf_text(&why), sentence))
		fail_msg("told: %s", buf_text(&why));
	assert_int_equal(options_read_credentials(o, NULL, &c), error);
	buf_release(&why);
}

static void the_token_comes_from_the_first_place_that_has_one(void **state)
{
	struct options o = read_good("raydocs", NULL);
	assert_no_token(&o, -ENOENT, "sessionfs setup raydocs");
	write_text("config/sessionfs/raydocs.token", "stored\n", 0600);
	assert_token(&o, "stored");
	options_release(&o);

	write_config("[raydocs]\ntoken_command = echo printed\n");
	o = read_good("raydocs", NULL);
	assert_token(&o, "printed");
	options_release(&o);

	(void)mkdir(in_dir("credentials"), 0700);
	(void)setenv("CREDENTIALS_DIRECTORY", path, 1);
	o = read_good("raydocs", NULL);
	assert_token(&o, "printed"); /* a folder of credentials without ours says nothing */
	write_text("credentials/token", "credential\n", 0644);
	assert_token(&o, "credential");
	options_release(&o);

	(void)setenv("SESSIONFS_TOKEN", "environment", 1);
	o = read_good("raydocs", NULL);
	assert_null(getenv("SESSIONFS_TOKEN")); /* no child has it */
	assert_token(&o, "environment");
	options_release(&o);

	write_text("mine", "from-file\n", 0600);
	(void)setenv("SESSIONFS_TOKEN", "environment", 1);
	char text[300];
	(void)snprintf(text, sizeof(text), "token_file=%s", in_dir("mine"));
	o = read_good("raydocs", text);
	assert_token(&o, "from-file");
	write_text("mine", "renewed\n", 0600);
	assert_token(&o, "renewed"); /* read anew each time */
	assert_int_equal(chmod(in_dir("mine"), 0640), 0);
	assert_no_token(&o, -EACCES, "others can read it");
	write_text("mine", " \n", 0600);
	assert_no_token(&o, -EINVAL, "holds no token");
	assert_int_equal(unlink(in_dir("mine")), 0);
	assert_no_token(&o, -ENOENT, "cannot be read"); /* a named place that is empty is not passed over */
	options_release(&o);
}

static void with_a_user_name_the_secret_is_a_password(void **state)
{
	struct credentials c = { 0 };

	write_text("config/sessionfs/raydocs.token", "sesame\n", 0600);
	struct options o = read_good("raydocs", "username=me@example.com");
	assert_int_equal(options_read_credentials(&o, NULL, &c), 0);
	assert_null(c.token);
	assert_string_equal(c.user, "me@example.com");
	assert_string_equal(secret_reveal(c.password), "sesame");
	credentials_release(&c);
	options_release(&o);
}

static void another_secret_user_or_address_is_another_account(void **state)
{
	char one[65], same[65], other[65];

	write_text("config/sessionfs/raydocs.token", "sesame\n", 0600);
	struct options o = read_good("raydocs", NULL), named = read_good("raydocs", "username=me");
	assert_int_equal(options_fingerprint(&o, "https://x", NULL, one), 0);
	assert_int_equal(options_fingerprint(&o, "https://x", NULL, same), 0);
	assert_string_equal(one, same);
	assert_int_equal(options_fingerprint(&o, "https://y", NULL, other), 0);
	assert_string_not_equal(one, other);
	assert_int_equal(options_fingerprint(&named, "https://x", NULL, other), 0);
	assert_string_not_equal(one, other);
	write_text("config/sessionfs/raydocs.token", "other\n", 0600);
	assert_int_equal(options_fingerprint(&o, "https://x", NULL, other), 0);
	assert_string_not_equal(one, other);
	assert_int_equal(unlink(path), 0);
	assert_int_equal(options_fingerprint(&o, "https://x", NULL, other), -ENOENT);
	options_release(&o);
	options_release(&named);
}

/* ---- for others -------------------------------------------------------------------------------------------- */

static void the_backend_gets_what_concerns_it(void **state)
{
	struct options o = read_good("raydocs", "naming=session,rate=off,cafile=/c,url=https://x.example");
	struct backend_config config;

	options_backend_config(&o, &config);
	assert_string_equal(config.service, "raydocs");
	assert_string_equal(config.url, "https://x.example");
	assert_int_equal(config.rate_per_min, -1);
	assert_string_equal(config.cafile, "/c");
	assert_string_equal(config.scratch_dir, o.cache_dir);
	assert_string_equal(config.option(config.arg, "naming", 0), "session");
	assert_null(config.option(config.arg, "naming", 1));
	assert_null(config.option(config.arg, "nam", 0));
	struct credentials c = { 0 };
	assert_int_equal(config.read_credentials(config.arg, &c), -ENOENT);
	options_release(&o);
}

static void the_help_names_every_option_and_each_is_known(void **state)
{
	struct buf help = BUF(100000);
	char source[32] = "raydocs";
	int count = 0;

	options_help(&help);
	char *text = buf_take(&help), *rest = text;
	for (char *line; (line = strsep(&rest, "\n"));) {
		char name[64], option[100];
		if (sscanf(line, "  for %31[^:]:", source) == 1) /* what follows is that service's own */
			continue;
		if (strncmp(line, "    ", 4) != 0 || line[4] == ' ' || strncmp(line, "    and", 7) == 0)
			continue;
		(void)snprintf(name, sizeof(name), "%.*s", (int)strcspn(line + 4, "= "), line + 4);
		(void)snprintf(option, sizeof(option), "%s=\x01", name);
		struct options o = { 0 };
		struct buf why = BUF(2000);
		if (try_read(source, option, &why, &o) < 0 && strstr(buf_text(&why), "unknown option '"))
			fail_msg("the help tells of '%s'", name);
		options_release(&o);
		buf_release(&why);
		count++;
	}
	assert_true(count >= 30);
	free(text);
	buf_release(&help);
}

static void a_duration_has_a_unit_or_is_in_seconds(void **state)
{
	static const struct {
		const char *text;
		int64_t ms;
	} cases[] = {
		{ "250ms", 250 },    { "30s", 30000 }, { "30", 30000 }, { "5m", 300000 }, { "1h", 3600000 },
		{ "2d", 172800000 }, { "0", 0 },       { "", -1 },      { "s", -1 },      { "-1", -1 },
		{ "1w", -1 },        { " 1", -1 },     { "1 s", -1 },
	};

	for (size_t i = 0; i < COUNT(cases); i++) {
		int64_t ms = -1;
		if (options_parse_time(cases[i].text, &ms) != (cases[i].ms >= 0) || ms != cases[i].ms)
			fail_msg("'%s' is %lld ms", cases[i].text, (long long)ms);
	}
}

int main(void)
{
#define EACH(test) cmocka_unit_test_setup_teardown(test, begin, end)
	const struct CMUnitTest tests[] = {
		EACH(without_options_the_documented_defaults_hold),
		EACH(each_option_is_taken),
		EACH(names_of_users_and_groups_are_looked_up),
		EACH(with_allow_other_the_files_are_readable_unless_told_otherwise),
		EACH(the_last_of_a_single_option_prevails_and_repeatable_ones_add_up),
		EACH(a_wrong_value_is_refused_in_a_sentence_that_shows_it),
		EACH(a_token_is_never_repeated_in_the_refusal),
		EACH(loopback_may_go_without_tls),
		EACH(words_of_mount_and_fuse_are_swallowed_or_passed_on),
		EACH(the_switches_are_understood_in_any_place),
		EACH(a_mount_point_is_resolved_even_when_it_is_not_there),
		EACH(a_section_gives_options_and_the_command_line_prevails),
		EACH(a_file_that_cannot_be_understood_is_told_with_its_line),
		EACH(storing_a_key_leaves_the_rest_of_the_file_alone),
		EACH(storing_makes_the_file_and_its_folder),
		EACH(each_section_and_address_has_a_folder_of_its_own),
		EACH(systemd_says_where_state_is_kept),
		EACH(an_empty_home_is_never_the_beginning_of_a_path),
		EACH(the_folders_are_made_for_us_alone),
		EACH(the_token_comes_from_the_first_place_that_has_one),
		EACH(with_a_user_name_the_secret_is_a_password),
		EACH(another_secret_user_or_address_is_another_account),
		EACH(the_backend_gets_what_concerns_it),
		EACH(the_help_names_every_option_and_each_is_known),
		EACH(a_duration_has_a_unit_or_is_in_seconds),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
