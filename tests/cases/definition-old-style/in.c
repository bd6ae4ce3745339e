int f(a) int a; { x=1;
  y( x ) ; }
int g() { x = 1; y(x); }
