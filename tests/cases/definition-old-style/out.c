int f(a) int a; { x=1;
  y(2 * x ) ; }
int g() { x = 1; y(x); }
