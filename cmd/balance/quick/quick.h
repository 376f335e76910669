// What quick.c leaves to the program: nothing where run is empty.
struct quick_rest {
	char run[64];
	unsigned long long last;
	int interrupted;
};

extern struct quick_rest quick_rest;
