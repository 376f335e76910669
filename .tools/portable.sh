#!/bin/sh
# Lists the packages that can be checked for another system without a C compiler
# for it: all but those that need SQLite.
set -eu
go list -f '{{.ImportPath}} {{join .Deps ","}},' ./... | grep -v 'mattn/go-sqlite3,' | cut -d' ' -f1
