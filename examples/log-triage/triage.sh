#!/bin/sh
# Reads a folder of logs and writes triage.md: the errors and warnings, those
# alike in one group, with how many there were, the first and the last.
#
#   sh triage.sh FOLDER [GROUPS]     GROUPS: how many groups to list, 20
#
# Lines are alike when they differ only in words that have digits in them, which
# are numbers, times, addresses and ids. A time at the beginning of a line is
# understood as 2026-11-23T10:15:00 or as Nov 23 10:15:00.
#
# Needs a POSIX shell, awk and the usual small tools. File names may contain
# anything; files that are not text are counted and not read.
set -eu
LC_ALL=C # bytes, and the same order on every machine
export LC_ALL

# read_files tells about each file, a fact a line, its parts between tabs: the
# kind of fact, and for a problem its time, severity, group, place and text.
# What people watch goes to descriptor 3.
read_files() {
	for path; do
		name=$(printf '%s' "${path#./}" | tr '\001-\037\177' '?' | tr '|' '/')
		if [ ! -r "$path" ]; then
			echo unreadable
			printf '%s: cannot be read\n' "$name" >&3
			continue
		fi
		nuls=$(dd if="$path" bs=8192 count=1 2>/dev/null | tr -cd '\000' | wc -c)
		if [ $((nuls)) -gt 0 ]; then
			echo binary
			printf '%s: not text\n' "$name" >&3
			continue
		fi
		NAME=$name awk '
			# cut takes a time off the beginning of the line in text.
			function cut(   m) {
				if (match(text, /^[[(]?[0-9][0-9][0-9][0-9]-[0-9][0-9]-[0-9][0-9][T ][0-9][0-9]:[0-9][0-9]:[0-9][0-9][^ ]*/)) {
					when = substr(text, 1, RLENGTH)
					text = substr(text, RLENGTH + 1)
					sub(/^[[(]/, "", when)
					when = substr(when, 1, 10) " " substr(when, 12, 8)
				} else if (match(text, /^[A-Z][a-z][a-z] [ 0-9][0-9] [0-9][0-9]:[0-9][0-9]:[0-9][0-9]/)) {
					m = index("JanFebMarAprMayJunJulAugSepOctNovDec", substr(text, 1, 3))
					when = sprintf("%02d-%02d %s", (m + 2) / 3, substr(text, 5, 2), substr(text, 8, 8))
					text = substr(text, RLENGTH + 1)
				}
			}
			function severity(s) {
				s = " " tolower(s) " "
				gsub(/[^a-z]/, " ", s)
				if (s ~ / (panic|fatal|critical|emerg|alert) /) return "1 fatal"
				if (s ~ / (error|err|exception|fail|failed|failure|denied|refused|timeout) /) return "2 error"
				if (s ~ / (warn|warning|deprecated) /) return "3 warning"
				return ""
			}
			{ lines++; sub(/\r$/, "") }
			(how = severity($0)) != "" {
				gsub(/[\001-\037\177]/, " ")
				gsub(/\|/, "/")
				text = $0; when = "-"
				cut()
				sub(/^[]) ]+/, "", text)
				group = substr(text, 1, 2000)
				gsub(/[A-Za-z0-9_]*[0-9][A-Za-z0-9_]*/, "#", group)
				gsub(/#([-.:\/]#)+/, "#", group)
				printf "problem\t%s\t%s\t%s\t%s:%d\t%s\n", when, how, group, ENVIRON["NAME"], NR, substr(text, 1, 2000)
				found++
			}
			END { printf "file\t%d\t%d\n", lines, found }' <"$path"
		printf '%s: read\n' "$name" >&3
	done
}

if [ "${1-}" = --files ]; then # called by find below
	shift
	read_files "$@"
	exit
fi

if [ $# -lt 1 ] || [ $# -gt 2 ] || [ ! -d "$1" ]; then
	echo "usage: sh triage.sh FOLDER [GROUPS]" >&2
	exit 2
fi
most=${2-20}
case $most in
'' | *[!0-9]*)
	echo "triage.sh: $most is no number of groups" >&2
	exit 2
	;;
esac
case $0 in
/*) self=$0 ;;
*) self=$PWD/$0 ;;
esac
tmp=$(mktemp -d "${TMPDIR:-/tmp}/triage.XXXXXX")
trap 'rm -rf "$tmp"' EXIT
trap 'exit 1' HUP INT TERM
tab=$(printf '\t')

echo "reading $1"
(cd "$1" && find . -type f -exec sh "$self" --files {} +) 3>&1 >"$tmp/facts" ||
	echo "some folders cannot be read"

# A group a line: severity, count, first and last time, group, place and text of
# the first.
awk -F '\t' '$1 == "problem"' "$tmp/facts" | sort -t "$tab" -k 2,2 -k 5,5 |
	awk -F '\t' '
		{ key = $3 "\t" $4 }
		!(key in n) { first[key] = $2; place[key] = $5; text[key] = $6 }
		{ n[key]++; last[key] = $2 }
		END {
			for (key in n) {
				split(key, part, "\t")
				printf "%s\t%d\t%s\t%s\t%s\t%s\t%s\n", part[1], n[key], first[key], last[key], part[2], place[key], text[key]
			}
		}' | sort -t "$tab" -k 1,1 -k 2,2nr -k 5,5 >"$tmp/groups"

echo "writing triage.md"
{
	echo "# Log triage"
	echo
	awk -F '\t' -v groups="$(wc -l <"$tmp/groups")" '
		{ n[$1]++ }
		$1 == "file" { lines += $2; found += $3 }
		END {
			printf "- %d problems in %d groups, in %d lines of %d files\n", found, groups, lines, n["file"]
			printf "- not text: %d files\n- cannot be read: %d files\n", n["binary"], n["unreadable"]
		}' "$tmp/facts"
	head -n "$most" "$tmp/groups" | awk -F '\t' '
		function cut(s) {
			if (length(s) <= 200) return s
			s = substr(s, 1, 200)
			sub(/[\300-\377][\200-\277]*$/, "", s) # a letter that may be cut
			return s "…"
		}
		NR == 1 { print "\n| problems | severity | first | last | where first |\n| ---: | --- | --- | --- | --- |" }
		{ row[NR] = "\n## " $2 " × " cut($5) "\n\n    " cut($7); print "| " $2 " | " substr($1, 3) " | " $3 " | " $4 " | " $6 " |" }
		END { for (i = 1; i <= NR; i++) print row[i] }'
} >triage.md
sed -n '3s/^- //p' triage.md
