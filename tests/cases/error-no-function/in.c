int first() { x(); }
int other(a) char *a; { x(); }
extern int main();
