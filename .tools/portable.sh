#!/bin/sh
# Lists the packages that can be checked for another system without a C compiler
# for it: all but those that need SQLite, for themselves or for their tests.
set -eu
go list -f '{{.ImportPath}} {{join .Deps ","}},{{join .TestImports ","}},{{join .XTestImports ","}},' ./... |
	grep -v -e 'mattn/go-sqlite3,' -e 'balance/store,' | cut -d' ' -f1
