/* SPDX-License-Identifier: GPL-2.0-or-later */
#include "options.h"

#include <getopt.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/un.h>

#include "control.h"

static const char help[] =
	"Usage: vmmswap-guest [--region SIZE[,memfd=N][,offset=BYTES]]... (--socket PATH | --no-handoff)\n"
	"                     [OPTION]...\n"
	"\n"
	"A small VMM: guest memory in memfds, workers and device processes that use it all the time and "
	"check\n"
	"every byte. It hands its memory to vmmswap-monitor as any VMM would, and obeys orders on standard "
	"input.\n"
	"\n"
	"  --region SIZE[,memfd=N][,offset=BYTES]\n"
	"                      a region of guest memory; without memfd= in a memfd of its own, with the same "
	"N\n"
	"                      several regions share one. Sizes end in K, M or G. Up to 64 times; default: "
	"64M\n"
	"  --socket PATH       the monitor's socket, such as /run/vmmswap/NAME.sock\n"
	"  --no-handoff        no monitor\n"
	"  --tries N           how often to connect again, ten times a second, while nobody listens\n"
	"                      (default 600)\n"
	"  --api WHO           who does UFFDIO_API: monitor (default), self, or self=FEATURES, a number\n"
	"  --uffd HOW          from where: auto (default), device (/dev/userfaultfd), syscall\n"
	"  --user-mode-only    make a userfaultfd that a monitor must refuse\n"
	"  --no-dummy          send no dummy page\n"
	"  --pins yes|no       promise something about pins; default: say nothing\n"
	"  --workers N         threads of the VMM, 1 to 8 (default 2)\n"
	"  --device-workers N  threads of each other process, 1 to 8 (default 1)\n"
	"  --seed N            of contents and of the order of accesses (default 1)\n"
	"  --mix LIST          classes of pages, their percentages adding up to 100\n"
	"                      (default random=35,text=35,same=10,zero=10,untouched=10)\n"
	"  --huge              ask for transparent huge pages; without it they are forbidden\n"
	"  --help              this\n"
	"\n"
	"Example: vmmswap-guest --region 512M --region 256M --socket /run/vmmswap/web.sock\n"
	"\n";

enum {
	OPT_REGION = 256,
	OPT_SOCKET,
	OPT_NO_HANDOFF,
	OPT_TRIES,
	OPT_API,
	OPT_UFFD,
	OPT_USER_MODE,
	OPT_NO_DUMMY,
	OPT_PINS,
	OPT_WORKERS,
	OPT_DEVICE_WORKERS,
	OPT_SEED,
	OPT_MIX,
	OPT_HUGE,
	OPT_HELP
};

static const struct option long_options[] = {
	{ "region", required_argument, NULL, OPT_REGION },
	{ "socket", required_argument, NULL, OPT_SOCKET },
	{ "no-handoff", no_argument, NULL, OPT_NO_HANDOFF },
	{ "tries", required_argument, NULL, OPT_TRIES },
	{ "api", required_argument, NULL, OPT_API },
	{ "uffd", required_argument, NULL, OPT_UFFD },
	{ "user-mode-only", no_argument, NULL, OPT_USER_MODE },
	{ "no-dummy", no_argument, NULL, OPT_NO_DUMMY },
	{ "pins", required_argument, NULL, OPT_PINS },
	{ "workers", required_argument, NULL, OPT_WORKERS },
	{ "device-workers", required_argument, NULL, OPT_DEVICE_WORKERS },
	{ "seed", required_argument, NULL, OPT_SEED },
	{ "mix", required_argument, NULL, OPT_MIX },
	{ "huge", no_argument, NULL, OPT_HUGE },
	{ "help", no_argument, NULL, OPT_HELP },
	{ 0 },
};

static void __attribute__((noreturn, format(printf, 1, 2))) usage(const char *format, ...)
{
	va_list args;

	fputs("vmmswap-guest: ", stderr);
	va_start(args, format);
	vfprintf(stderr, format, args);
	va_end(args);
	fputs("; see --help\n", stderr);
	exit(2);
}

static uint64_t number(const char *name, const char *text, uint64_t least, uint64_t most)
{
	uint64_t value;

	if (!parse_size(text, &value) || value < least || value > most)
		usage("%s: '%s' is not a number from %llu to %llu", name, text, (unsigned long long)least,
		      (unsigned long long)most);
	return value;
}

static void set_api(struct uffd_options *options, const char *who)
{
	char *end;

	options->does_api = !strncmp(who, "self", 4);
	if (!strncmp(who, "self=", 5)) {
		options->api_features = strtoull(who + 5, &end, 0);
		if (who[5] && !*end)
			return;
	} else if (!strcmp(who, "self") || !strcmp(who, "monitor")) {
		return;
	}
	usage("--api: '%s' is not monitor, self or self=FEATURES", who);
}

static enum uffd_source uffd_source(const char *how)
{
	if (!strcmp(how, "auto"))
		return UFFD_AUTO;
	if (!strcmp(how, "device"))
		return UFFD_DEVICE;
	if (!strcmp(how, "syscall"))
		return UFFD_SYSCALL;
	usage("--uffd: '%s' is not auto, device or syscall", how);
}

static const char *pins(const char *text)
{
	if (!strcmp(text, "yes"))
		return "true";
	if (!strcmp(text, "no"))
		return "false";
	usage("--pins: '%s' is not yes or no", text);
}

static void add_region(struct memory *memory, const char *text)
{
	const char *wrong = memory_add(memory, text);

	if (wrong)
		usage("--region %s: %s", text, wrong);
}

static const char *socket_path(const char *path)
{
	if (!*path || strlen(path) >= sizeof(((struct sockaddr_un *)NULL)->sun_path))
		usage("--socket: a path of 1 to 107 bytes is needed");
	return path;
}

static void set(int name, const char *value, struct guest *guest, struct handoff *handoff)
{
	switch (name) {
	case OPT_REGION:
		add_region(&guest->memory, value);
		break;
	case OPT_SOCKET:
		handoff->path = socket_path(value);
		break;
	case OPT_TRIES:
		handoff->tries = (unsigned)number("--tries", value, 0, 1000000);
		break;
	case OPT_API:
		set_api(&guest->uffd_options, value);
		break;
	case OPT_UFFD:
		guest->uffd_options.source = uffd_source(value);
		break;
	case OPT_USER_MODE:
		guest->uffd_options.user_mode_only = true;
		break;
	case OPT_NO_DUMMY:
		guest->has_dummy = false;
		break;
	case OPT_PINS:
		handoff->pins = pins(value);
		break;
	case OPT_WORKERS:
		guest->workers = (unsigned)number("--workers", value, 1, MAX_WORKERS);
		break;
	case OPT_DEVICE_WORKERS:
		guest->device_workers = (unsigned)number("--device-workers", value, 1, MAX_WORKERS);
		break;
	case OPT_SEED:
		guest->content.seed = number("--seed", value, 0, UINT64_MAX);
		break;
	case OPT_MIX:
		if (!content_parse_mix(&guest->content, value))
			usage("--mix: '%s' is not like random=40,zero=60 with a sum of 100", value);
		break;
	case OPT_HUGE:
		guest->memory.huge = true;
		break;
	case OPT_HELP:
		fputs(help, stdout);
		fputs(command_help, stdout);
		exit(0);
	default:
		exit(2); /* getopt has said why */
	}
}

void options_parse(int argc, char **argv, struct guest *guest, struct handoff *handoff)
{
	bool no_handoff = false;
	int name;

	guest->content.seed = 1;
	content_parse_mix(&guest->content, "random=35,text=35,same=10,zero=10,untouched=10");
	guest->workers = 2;
	guest->device_workers = 1;
	guest->has_dummy = true;
	handoff->tries = 600; /* a minute: a busy host starts a monitor slowly */
	while ((name = getopt_long(argc, argv, "", long_options, NULL)) != -1) {
		if (name == OPT_NO_HANDOFF)
			no_handoff = true;
		else
			set(name, optarg, guest, handoff);
	}
	if (optind < argc)
		usage("'%s' is not an option", argv[optind]);
	if (no_handoff == (handoff->path != NULL))
		usage("say either --socket PATH or --no-handoff");
	if (!guest->memory.regions)
		add_region(&guest->memory, "64M");
}
