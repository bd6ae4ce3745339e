void f()
{
#ifdef A
  if (a) {
#else
  if (b) {
#endif
  a(); }
}
void g() { b(); }
