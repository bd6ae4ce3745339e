char *s = "one\n\
two"; /* "one\ntwo" */
