/* Linked, through conf-ld, into every program of the scratch copy, so that qmail's users need not exist and no
   privilege is needed. The tree's own sources stay as they are: a definition in the program replaces that of the C
   library.

   - Every user and group name is the user that the proof runs as: auto-uid and auto-gid at build time, and the
     look-ups at run time in trees that have no auto-uid.
   - setgroups and initgroups do nothing and succeed: only root may call them, and qmail-lspawn calls them for each
     delivery. setuid and setgid stay the real ones: any process may change to its own id.
   - fsync does nothing. The proof is about deliveries, not about power failures, and on a slow disk it would take
     minutes. With RIG_REAL_FSYNC it stays the real one. */

#define _GNU_SOURCE
#define _DEFAULT_SOURCE
#include <sys/types.h>
#include <grp.h>
#include <pwd.h>
#include <unistd.h>

#ifndef RIG
#error RIG must name the directory of the rig
#endif

static char rig_name[] = "rig";
static char rig_none[] = "*";
static char rig_home[] = RIG;
static char *rig_members[1];
static struct passwd rig_user;
static struct group rig_group;

struct passwd *getpwuid(uid_t uid)
{
  rig_user.pw_name = rig_name;
  rig_user.pw_passwd = rig_none;
  rig_user.pw_uid = RIG_UID;
  rig_user.pw_gid = RIG_GID;
  rig_user.pw_gecos = rig_none;
  rig_user.pw_dir = rig_home;
  rig_user.pw_shell = rig_none;
  (void) uid;
  return &rig_user;
}

struct passwd *getpwnam(const char *name)
{
  (void) name;
  return getpwuid(RIG_UID);
}

struct group *getgrgid(gid_t gid)
{
  rig_group.gr_name = rig_name;
  rig_group.gr_passwd = rig_none;
  rig_group.gr_gid = RIG_GID;
  rig_group.gr_mem = rig_members;
  (void) gid;
  return &rig_group;
}

struct group *getgrnam(const char *name)
{
  (void) name;
  return getgrgid(RIG_GID);
}

#ifdef __GLIBC__
int setgroups(size_t n, const gid_t *list) { (void) n; (void) list; return 0; }
int initgroups(const char *user, gid_t group) { (void) user; (void) group; return 0; }
#elif defined(__linux__)
int setgroups(size_t n, const gid_t *list) { (void) n; (void) list; return 0; }
int initgroups(const char *user, gid_t group) { (void) user; (void) group; return 0; }
#elif defined(__APPLE__)
int setgroups(int n, const gid_t *list) { (void) n; (void) list; return 0; }
int initgroups(const char *user, int group) { (void) user; (void) group; return 0; }
#else
int setgroups(int n, const gid_t *list) { (void) n; (void) list; return 0; }
int initgroups(const char *user, gid_t group) { (void) user; (void) group; return 0; }
#endif

#ifndef RIG_REAL_FSYNC
int fsync(int fd) { (void) fd; return 0; }
#endif
