void f() { a = line.s[1]; line.s [ 1 ]++; b = lines[1]; }
void g() { line.s[1]; }
