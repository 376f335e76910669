// What quick.c leaves to the program: all of it where run is empty, unless it is unsure.
struct quick_rest {
	char run[64];
	unsigned long long last;
	int interrupted;
	int unsure;
};

extern struct quick_rest quick_rest;
