other: spawn.o
	./load other spawn.o

prog: \
load prog.o spawn.o
	./load prog spawn.o gate.o \
	a.a b.a

last:
