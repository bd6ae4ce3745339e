// The same idea as three rules of patches/big-concurrency, for spatch.
@@
identifier ch;
@@
  ch = delnum;
  substdio_put(&ssout,&ch,1);
+ ch = delnum >> 8;
+ substdio_put(&ssout,&ch,1);

@@
@@
- auto_spawn > 255
+ auto_spawn > 65000

@@
expression e;
@@
  ch = delnum;
  while (!stralloc_append(e,&ch)) nomem();
+ ch = delnum >> 8;
+ while (!stralloc_append(e,&ch)) nomem();
