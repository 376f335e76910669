#!/bin/sh
# Reads a folder of text and writes report.md about it.
#
#   sh report.sh FOLDER [WORDS]      WORDS: how many frequent words to list, 10
#
# Needs a POSIX shell, awk and the usual small tools. File names may contain
# anything; files that are not text are counted and not read.
set -eu
LC_ALL=C # bytes, and the same order on every machine
export LC_ALL

# read_files tells about each file, a fact a line, its parts between tabs: the
# kind of fact, the file's name, and the rest. What people watch goes to
# descriptor 3.
read_files() {
	digest=cksum
	if command -v sha256sum >/dev/null; then digest=sha256sum; fi
	for path; do
		name=$(printf '%s' "${path#./}" | tr '\001-\037\177' '?' | tr '|' '/')
		if [ ! -r "$path" ]; then
			printf 'unreadable\t%s\n' "$name"
			printf '%s: cannot be read\n' "$name" >&3
			continue
		fi
		nuls=$(dd if="$path" bs=8192 count=1 2>/dev/null | tr -cd '\000' | wc -c)
		if [ $((nuls)) -gt 0 ]; then
			printf 'binary\t%s\n' "$name"
			printf '%s: not text\n' "$name" >&3
			continue
		fi
		sum=$($digest <"$path" | cut -d ' ' -f 1)
		NAME=$name SUM=$sum SIZE=$(wc -c <"$path") awk '
			function fact(kind, text) { printf "%s\t%s\t%s\n", kind, name, text }
			function plain(s) {
				gsub(/[\001-\037\177]/, " ", s)
				gsub(/\|/, "/", s)
				if (length(s) > 72) {
					s = substr(s, 1, 72)
					sub(/[\300-\377][\200-\277]*$/, "", s) # a letter that may be cut
					s = s "…"
				}
				return s
			}
			BEGIN { name = ENVIRON["NAME"] }
			{ sub(/\r$/, ""); lines++; all += NF }
			length($0) > longest { longest = length($0); at = NR; text = $0 }
			/^#+ +[^ ]/ { fact("heading", NR "\t" plain($0)) }
			/(^|[^A-Za-z])(TODO|FIXME|XXX)([^A-Za-z]|$)/ { fact("marker", NR "\t" plain($0)) }
			{
				# Words are of letters and of what is not ASCII, so that no language is cut.
				$0 = tolower($0)
				gsub(/[\001-\100\133-\140\173-\177]+/, " ")
				for (i = 1; i <= NF; i++) if (length($i) > 4) seen[$i]++
			}
			END {
				size = ENVIRON["SIZE"] + 0
				fact("text", lines + 0 "\t" all + 0 "\t" size)
				if (size > 0) fact("sum", ENVIRON["SUM"] "-" size)
				if (longest > 0) fact("long", longest "\t" at "\t" plain(text))
				for (w in seen) fact("word", w "\t" seen[w])
			}' <"$path"
		printf '%s: read\n' "$name" >&3
	done
}

if [ "${1-}" = --files ]; then # called by find below
	shift
	read_files "$@"
	exit
fi

if [ $# -lt 1 ] || [ $# -gt 2 ] || [ ! -d "$1" ]; then
	echo "usage: sh report.sh FOLDER [WORDS]" >&2
	exit 2
fi
most=${2-10}
case $most in
'' | *[!0-9]*)
	echo "report.sh: $most is no number of words" >&2
	exit 2
	;;
esac
case $0 in
/*) self=$0 ;;
*) self=$PWD/$0 ;;
esac
tmp=$(mktemp -d "${TMPDIR:-/tmp}/report.XXXXXX")
trap 'rm -rf "$tmp"' EXIT
trap 'exit 1' HUP INT TERM
tab=$(printf '\t')

# facts gives the facts of a kind, by file and line.
facts() {
	awk -F '\t' -v kind="$1" '$1 == kind' "$tmp/facts" | sort -t "$tab" -k 2,2 -k 3,3n
}

# section puts a title over what it reads, if there is anything.
section() {
	awk -v title="$1" 'NR == 1 { print "\n## " title "\n" } { print }'
}

place='{ print "- " $2 ":" $3 " " $4 }' # of a line in a file

echo "reading $1"
(cd "$1" && find . -type f -exec sh "$self" --files {} +) 3>&1 >"$tmp/facts" ||
	echo "some folders cannot be read"

echo "writing report.md"
{
	echo "# Text report"
	echo
	awk -F '\t' '
		{ n[$1]++ }
		$1 == "text" { lines += $3; words += $4; bytes += $5 }
		END {
			printf "- text: %d files, %d lines, %d words, %d bytes\n", n["text"], lines, words, bytes
			printf "- not text: %d files\n- cannot be read: %d files\n", n["binary"], n["unreadable"]
		}' "$tmp/facts"
	facts text | awk -F '\t' '
		NR == 1 { print "| file | lines | words | bytes |\n| --- | ---: | ---: | ---: |" }
		{ print "| " $2 " | " $3 " | " $4 " | " $5 " |" }' | section Files
	facts heading | awk -F '\t' "$place" | section Headings
	facts marker | awk -F '\t' "$place" | section "Left to do"
	facts sum | awk -F '\t' '
		$3 in names { names[$3] = names[$3] ", " $2; if (!again[$3]++) order[++n] = $3; next }
		{ names[$3] = $2 }
		END { for (i = 1; i <= n; i++) print "- " names[order[i]] }' | section "Same content"
	facts long | sort -t "$tab" -k 3,3nr -k 2,2 | head -n 5 |
		awk -F '\t' '{ print "- " $3 " bytes: " $2 ":" $4 " " $5 }' | section "Longest lines"
	facts word | awk -F '\t' '{ n[$3] += $4 } END { for (w in n) print n[w] "\t" w }' |
		sort -t "$tab" -k 1,1nr -k 2,2 | head -n "$most" |
		awk -F '\t' '{ print "- " $2 ": " $1 }' | section "Most frequent words"
} >report.md
sed -n '3s/^- //p' report.md
