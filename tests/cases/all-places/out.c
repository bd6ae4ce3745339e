void f() { a = line.s[2]; line.s [ 2 ]++; b = lines[1]; }
void g() { line.s[1]; }
