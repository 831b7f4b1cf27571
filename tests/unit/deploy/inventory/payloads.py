"""
Hostile texts for the keys of a fleet file, by the language that each tries to speak.
"""

MARK = "/tmp/slipway-hostile"  # the file that a payload that works would make
_LINE_ENDS = ("\n", "\r", "\r\n", "\v", "\f", "\x1c", "\x85", "\u2028", "\u2029")

SHELL = (
    f"; touch {MARK}", f"| touch {MARK}", f"&& touch {MARK}", f"`touch {MARK}`",
    f"$(touch {MARK})", f"$(touch${{IFS}}{MARK})", "${HOME}", "$HOME", "$0", "~root", "~root/x",
    f"a'; touch {MARK}; '", f'a"; touch {MARK}; "', f"> {MARK}", f"< {MARK}", "*", "?", "[a-z]",
    "{a,b}", "!!", "#", "a #b", "\\", "a\\", "\\n", "$'\\n'", "a b", "a\tb", "'", '"', "''", '""',
)  # fmt: skip
SSH_CONFIG = (
    f"root\nProxyCommand touch {MARK}", f"root\n  LocalCommand touch {MARK}",
    f"x\nMatch exec \"touch {MARK}\"", f'x" ProxyCommand "touch {MARK}', "%h", "%n", "%u", "%%",
    "%C", "%{x}", f"x\nInclude {MARK}", "x\nStrictHostKeyChecking no", "a,b", "!a",
    "@cert-authority",
    f"a@b -oProxyCommand=touch@{MARK}", "a@b:22:22", "a@b:0", "a@b:99999", "a@-oProxyCommand=x",
    "-l@b", "@b", "a@", "a@b@c", "a@[b]", "a@[::1", "a@::1", "a@[fe80::1%eth0\nx]:22",
)  # fmt: skip
OPTIONS = (
    f"-oProxyCommand=touch {MARK}", "-oProxyCommand=x", "--", "-", "-x", "--rsh=x", "-F/dev/null",
    "--checkpoint-action=exec=sh", f"-o{MARK}", "--config=x", "--use-askpass=x", "-e", "--help",
)  # fmt: skip
ADDRESSES = (
    "fe80::1%", "fe80::1%eth0;x", "fe80::1%eth0 x", "fe80::1%%eth0", "fe80::1%../x",
    "fe80::1%eth0/24",
    "fe80::1%$(x)", "fe80::1%-eth0", "fe80::1%0123456789abcdef", "1.2.3.4%eth0", "::1/128",
    "0x7f000001", "0177.0.0.1", "127.1", "1.2.3.4.5", "a..b", ".a", "-a.b", "a-.b", "a_b.c", "a/b",
    "http://a", "a:22", "[::1]", "\u0661.2.3.4", "\uff11.2.3.4", "xn--\u00e9", "a\u3002b",
)  # fmt: skip
APT = (
    "deb [trusted=yes] http://x/ y main", "[trusted=yes]", "https://x/d\nTrusted: yes",
    "main\nTrusted: yes", "main Trusted: yes", "bookworm\n\nTypes: deb\nURIs: http://e/",
    'http://p:1"; DPkg::Pre-Invoke {"touch x";}; //', 'http://p:1";\nAPT::Update::Pre-Invoke "x',
    "./",
    "file:///etc", "copy:/x", "cdrom:x", "ssh://a/b", "mirror+file:/x", "http://u:p@h:1",
    "http://h:1/x", "http://h:0", "http://h:65536", "http://h:1x", "http://h:\u0661", "http:// h",
    "http://", "HTTP://h", "http://h/../x", "http://h?x", "http://h#x", "http://h:1;",
    "/etc/passwd",
    "/usr/share/keyrings/../../x.gpg", "//", "http://[::1", "http://h%0a", "socks5h://h:1",
)  # fmt: skip
HAPROXY = (
    f"8000\n    external-check command {MARK}", "a\n  log /dev/log", "a if TRUE", "%[env(HOME)]",
    "%ci", "a\\ b", "unix@/x", "abns@x", "fd@3", "a,b", "a;b", "${HOME}", '"${HOME}"', "~", "*:80",
)  # fmt: skip
SYSTEMD = (
    f"x\nExecStartPre=/bin/touch {MARK}", f"x\\\nExecStartPre=/bin/touch {MARK}", "%n", "%h", "%i",
    "%%", "%", "+/bin/sh", "!/bin/sh", "@/bin/sh", ":/bin/sh", "${X}", "$X", "x y", "x;y", "x # y",
    "x\n[Service]\nUser=root", 'x" y', "'x", "\\x41", "x\\", "=", "",
)  # fmt: skip
JINJA = (
    "{{ 7 * 7 }}", "{{ ''.__class__ }}", "{% include 'x' %}", "{# x #}", "{%- raw -%}",
    "{{ cycler.__init__.__globals__.os.popen('x') }}", "}}", "{{", "#}",
)  # fmt: skip
PYTEST = (
    "-k haproxy", "n1,local://", "local://", "ssh://x", "n1?sudo=true", "n1]", "[x", "a::b", "-p x",
    "--pdb", "paramiko://root:x@h", "n1,n2",
)  # fmt: skip
YAML = (
    "!!python/object/apply:os.system [x]", "*a", "&a b", "<<", "- a", "a: b", "a:\n  b", "{a: b}",
    "---", "...", "? a", "| x", "null", "~x", "0022", "0x16", "22:22", "1_000", "1e3", ".inf",
    "yes",
)  # fmt: skip
PATHS = (
    "../../etc/passwd", "/../x", "..", ".", "/", "a/../../b", "/dev/zero", "/proc/self/environ",
    "~",
    "C:\\x", "\\\\h\\x", "a\\b", "x/./y", "%2e%2e/x", "..%c0%af", "file:///x", "~+", "~-", "~0",
)  # fmt: skip
UNICODE = (
    "\u202egnp.exe", "\u2066x\u2069", "a\u200bb", "\ufeffx", "\u00a0", "\u00adx", "\u0430dmin",
    "\uff0e\uff0e\uff0fx", "\u0661\u0662", "\u00b2", "\u2460", "\U0001f600", "\udcff", "e\u0301",
    "\ufffe", "\U000e0041", "\ufdfa", "\u0130",
)  # fmt: skip
CONTROL = (
    "\x00", "a\x00b", "\x1b[2J", "\x1b]0;x\x07", "\x07", "\x08", "\x7f", "\x9b2J", "\t", "\x01",
    *(f"a{end}" for end in _LINE_ENDS), *(f"{end}a" for end in _LINE_ENDS),
    *(f"a{end}b" for end in _LINE_ENDS),
)  # fmt: skip
LONG = ("a" * 300, "a" * 5000, "a" * 20_000, "-" * 300, "9" * 400, "a." * 200, "/a" * 3000)
NUMBERS = (
    "1", "0", "-1", "1.5", "NaN", "inf", "1s", "\u0661s", "9" * 30 + "d", "1 s\n", "5%\n",
    "\u0665%",
    "1GiB\n", "9" * 20 + "TiB", "1e9s", " 1s", "1s ", "0x1s", "100%%", "\uff15%",
)  # fmt: skip
INJECTED_ARGUMENTS = (
    "--trust-remote-code", "--uds=/x", "--chat-template=/etc/passwd", "--download-dir=/tmp",
    "--max-num-seqs=4 --uds=/x", "--seed=1\n", "--seed", "--seed=x", "--seed=\u0661",
    "--hf-token=x",
    "--middleware=os.system", "--worker-cls=x", "--load-format=pt", "--config=/x.yml", "--seed==1",
)  # fmt: skip

PAYLOADS = tuple(
    dict.fromkeys(
        (
            *SHELL, *SSH_CONFIG, *OPTIONS, *ADDRESSES, *APT, *HAPROXY, *SYSTEMD, *JINJA, *PYTEST,
            *YAML, *PATHS, *UNICODE, *CONTROL, *LONG, *NUMBERS, *INJECTED_ARGUMENTS,
        )
    )
)  # fmt: skip
