//! A fixture tree with supplemental channels: qmail-send chooses one by the recipient's domain, and qmail-start starts
//! a qmail-rspawn for each. As in trees with the channels patch, what they are is in channels.h.
#![allow(dead_code, unreachable_pub)]

use qpatch::fixture::Dialect;

use crate::common::Fixture;

/// The K&R fixture with so many channels beside the local and the usual remote one.
pub(crate) fn with_channels(supplemental: u32) -> Fixture {
    let fixture = Fixture::new(Dialect::StockKr);
    fixture.write(
        "channels.h",
        &format!(
            "/* how many there are beside local and remote, and where their lists and descriptors are */\n\
             #define SUPPL_CHANNELS {supplemental}\n#define CHANNELS (SUPPL_CHANNELS + 2)\n\
             #define QDIR_BASENAME \"suppl\"\n#define SUPPL_FD 11\n"
        ),
    );
    let numbered = |text: &dyn Fn(u32) -> String| (0..supplemental).map(text).collect::<String>();

    fixture.replace(
        "qsnames.h",
        "#define CHANNELS 2 /* 0: local, 1: remote */",
        "#include \"channels.h\" /* 0: local, 1: remote, then the supplemental ones */",
    );
    fixture.replace(
        "qsnames.c",
        "{ \"remote/\", 1, \"\" },",
        &format!(
            "{{ \"remote/\", 1, \"\" }},{}",
            numbered(&|n| format!(" {{ \"suppl{n}/\", 1, \"\" }},"))
        ),
    );

    // Which channel an address goes over.
    fixture.replace(
        "qsrewrite.h",
        "/* 1: local, 2: remote, 0: out of memory */",
        "extern void rewrite_suppl(int c, const stralloc *names); /* control/suppls and the number */\n\n\
         /* 1: local, 2: remote, 3 and up: supplemental, 0: out of memory */",
    );
    fixture.replace(
        "qsrewrite.c",
        "#include \"byte.h\"\n",
        "#include \"byte.h\"\n#include \"channels.h\"\n",
    );
    fixture.replace(
        "qsrewrite.c",
        "int rewrite(const char *recip)\n{\n",
        "static stralloc suppls[SUPPL_CHANNELS];\nstatic struct constmap mapsuppls[SUPPL_CHANNELS];\n\n\
         void rewrite_suppl(int c, const stralloc *names)\n{\n  while (!stralloc_copy(&suppls[c],names)) nomem();\n  \
         constmap_init(&mapsuppls[c],suppls[c].s,suppls[c].len);\n}\n\nint rewrite(const char *recip)\n{\n  int c;\n",
    );
    fixture.replace(
        "qsrewrite.c",
        "  return constmap(&maplocals,rwline.s + at,rwline.len - at - 1) ? 1 : 2;\n",
        "  if (constmap(&maplocals,rwline.s + at,rwline.len - at - 1)) return 1;\n  \
         for (c = 0;c < SUPPL_CHANNELS;++c)\n    \
         if (constmap(&mapsuppls[c],rwline.s + at,rwline.len - at - 1)) return c + 3;\n  return 2;\n",
    );

    let send = "qmail-send.c";
    fixture.replace(
        send,
        "{ \"local\", \"remote\" };",
        &format!("{{ \"local\", \"remote\"{} }};", numbered(&|n| format!(", \"suppl{n}\""))),
    );
    let ends = |from: u32| numbered(&|n| format!(", {}", from + 2 * n));
    fixture.replace(send, "cmdfd[] = { 1, 3 };", &format!("cmdfd[] = {{ 1, 3{} }};", ends(11)));
    fixture.replace(
        send,
        "chanfdin[] = { 2, 4 };",
        &format!("chanfdin[] = {{ 2, 4{} }};", ends(12)),
    );
    fixture.replace(
        send,
        "      if (!present(queuename(Q_CHAN + !jo[j].channel,pe.id),&st))\n        pqput(&pqdone,pe.id,recent);\n      \
         return;\n",
        "      for (other = 0;other < CHANNELS;++other)\n        \
         if (other != jo[j].channel && present(queuename(Q_CHAN + other,pe.id),&st)) return;\n      \
         pqput(&pqdone,pe.id,recent);\n      return;\n",
    );
    fixture.replace(
        send,
        "  struct prioq_elt pe;\n  struct stat st;\n  char *name;\n\n  if (--jo[j].users) return;\n",
        "  struct prioq_elt pe;\n  struct stat st;\n  char *name;\n  int other;\n\n  if (--jo[j].users) return;\n",
    );
    fixture.replace(
        send,
        "  if (control_readfile(&list,\"control/locals\",1) != 1) return 0;\n  rewrite_locals(&list);\n",
        "  int c;\n\n  for (c = 0;c < SUPPL_CHANNELS;++c) {\n    suppl.len = 0;\n    \
         while (!stralloc_cats(&suppl,\"control/suppls\")) nomem();\n    numbered(&suppl,c);\n    list.len = 0;\n    \
         if (control_readfile(&list,suppl.s,0) == -1) return 0;\n    rewrite_suppl(c,&list);\n  }\n  \
         if (control_readfile(&list,\"control/locals\",1) != 1) return 0;\n  rewrite_locals(&list);\n",
    );
    fixture.replace(
        send,
        "int getlocals()\n{\n",
        "static stralloc suppl = {0};\n\nvoid numbered(sa,c)\nstralloc *sa;\nint c;\n{\n  char digit;\n\n  \
         if (c > 9) {\n    digit = '0' + c / 10;\n    while (!stralloc_append(sa,&digit)) nomem();\n  }\n  \
         digit = '0' + c % 10;\n  while (!stralloc_append(sa,&digit)) nomem();\n  while (!stralloc_0(sa)) nomem();\n}\n\n\
         int getlimits()\n{\n  int c;\n\n  for (c = 0;c < SUPPL_CHANNELS;++c) {\n    chan[c + 2].limit = 20;\n    \
         suppl.len = 0;\n    while (!stralloc_cats(&suppl,\"control/concurrencysuppl\")) nomem();\n    numbered(&suppl,c);\n    \
         if (control_readint(&chan[c + 2].limit,suppl.s) == -1) return 0;\n  }\n  return 1;\n}\n\nint getlocals()\n{\n",
    );
    fixture.replace(
        send,
        "    && control_readint(&lifetime,",
        "    && getlimits()\n    && control_readint(&lifetime,",
    );

    let start = "qmail-start.c";
    fixture.replace(
        start,
        "#include \"auto.h\"\n",
        "#include \"auto.h\"\n#include \"channels.h\"\n",
    );
    fixture.replace(
        start,
        "enum { LCMD, LREP, RCMD, RREP, CCMD, CREP, PIPES };\n",
        "enum { LCMD, LREP, RCMD, RREP, CCMD, CREP, FIXED, PIPES = FIXED + 2 * SUPPL_CHANNELS };\n\
         /* qmail-send's end of one, and the last of these */\n\
         #define FD(i) ((i) < FIXED ? (i) + 1 : (i) - FIXED + SUPPL_FD)\n#define FD_LAST FD(PIPES - 1)\n",
    );
    fixture.replace(start, "fd <= 6;", "fd <= FD_LAST;");
    fixture.replace(start, "for (i = 2;i <= 6;++i)", "for (i = 2;i <= FD_LAST;++i)");
    fixture.replace(
        start,
        "  helper(\"qmail-clean\",0,auto_uidq,CCMD,CREP);\n",
        "  helper(\"qmail-clean\",0,auto_uidq,CCMD,CREP);\n  for (i = FIXED;i < PIPES;i += 2)\n    \
         helper(\"qmail-rspawn\",0,auto_uidr,i,i + 1);\n",
    );
    fixture.replace(start, "if (fd_copy(i + 1,pi[i]", "if (fd_copy(FD(i),pi[i]");

    fixture.replace(
        "hier.c",
        "#include \"auto.h\"\n",
        "#include \"auto.h\"\n#include \"channels.h\"\n",
    );
    fixture.replace(
        "hier.c",
        "  unsigned int i;\n\n  d(auto_qmail,\"queue\",",
        "  char name[30];\n  unsigned int end;\n  unsigned int i;\n\n  d(auto_qmail,\"queue\",",
    );
    fixture.replace(
        "hier.c",
        "  dsplit(\"queue/local\",auto_uids,0700);\n",
        "  dsplit(\"queue/local\",auto_uids,0700);\n  for (i = 0;i < SUPPL_CHANNELS;++i) {\n    \
         end = fmt_str(name,\"queue/\" QDIR_BASENAME);\n    name[end + fmt_ulong(name + end,(unsigned long) i)] = 0;\n    \
         dsplit(name,auto_uids,0700);\n  }\n",
    );
    fixture
}
