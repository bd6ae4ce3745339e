/* as the Makefile of a patched tree writes it for a qmail-remote that reads both */
#define GATE_READS_SENDERS " authsenders"
#define GATE_READS_BOUNCES " !@"
