char *s = "three"; /* "one\ntwo" */
