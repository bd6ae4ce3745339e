void f()
{
   if (r < 1)
    { log("no (fire");  /* sic */
      die(1); }
   u = ch;
   if (r < 2) { log("no (fire");  /* sic */
      die(1); }
}
