prog: \
a.o b.o
# the objects of prog \
# and the archives

	./load prog a.o b.o \
	c.a

other: prog
