package isolate

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/balanceai/balance/exec/isolate/inside"
)

// etc are the parts of /etc that programs need to start and to verify what they
// talk to. None of them holds a secret. Who exists and where names are looked up
// is not the machine's but written for the run.
var etc = []string{
	"alternatives", "ld.so.cache", "ld.so.conf", "ld.so.conf.d", "localtime", "timezone", "mime.types", "magic", "protocols", "services",
	"ssl/certs", "ssl/openssl.cnf", "ca-certificates.conf", "pki/ca-trust", "pki/tls/certs", "pki/tls/openssl.cnf",
	"crypto-policies", "fonts", "OpenCL", "vulkan", "terminfo", "inputrc", "bash.bashrc", "profile", "python3",
}

// own are the files of /etc that are the run's.
var own = map[string]string{
	"passwd":        fmt.Sprintf("run:x:%d:%[1]d:run:%s:/bin/sh\nnobody:x:65534:65534:nobody:/:/bin/false\n", sandboxUser, inside.Work),
	"group":         fmt.Sprintf("run:x:%d:\nnogroup:x:65534:\n", sandboxUser),
	"hosts":         "127.0.0.1 localhost " + sandboxHost + "\n::1 localhost\n",
	"nsswitch.conf": "passwd: files\ngroup: files\nhosts: files\n",
}

// makeEtc makes the /etc of sandboxes below dir: one folder to mount, for each
// mount takes time at each start. It has a name by what is in it, so that a run
// of before keeps its own when the machine's has changed.
func makeEtc(dir, from string) (string, error) {
	part, err := os.MkdirTemp(dir, "etc-part-")
	if err != nil {
		return "", err
	}
	defer os.RemoveAll(part)
	sum := sha256.New()
	for _, name := range etc {
		if err := copyInto(part, from, name, sum); err != nil {
			return "", fmt.Errorf("copy %s: %w", filepath.Join(from, name), err)
		}
	}
	for _, name := range slices.Sorted(maps.Keys(own)) {
		fmt.Fprintf(sum, "%s\x00%s\x00", name, own[name])
		if err := os.WriteFile(filepath.Join(part, name), []byte(own[name]), 0o644); err != nil { //nolint:gosec // the run reads it
			return "", err
		}
	}
	if err := os.Chmod(part, 0o755); err != nil { //nolint:gosec // the run reads it
		return "", err
	}
	path := filepath.Join(dir, "etc-"+hex.EncodeToString(sum.Sum(nil)[:8]))
	if _, err := os.Stat(path); err == nil {
		return path, nil
	}
	return path, os.Rename(part, path)
}

// copyInto copies a file or folder, as far as everybody may read it. Links stay
// what they are where they lead to a place that sandboxes have, and become what
// they lead to elsewhere.
func copyInto(to, from, name string, sum io.Writer) error {
	top := filepath.Join(from, name)
	return filepath.WalkDir(top, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return nil //nolint:nilerr // it is not there, or not for everybody
		}
		rel, err := filepath.Rel(from, path)
		if err != nil {
			return err
		}
		target := filepath.Join(to, rel)
		if err := os.MkdirAll(filepath.Dir(target), 0o755); err != nil { //nolint:gosec // the run reads it
			return err
		}
		if d.Type() == fs.ModeSymlink {
			if link, err := os.Readlink(path); err == nil && (strings.HasPrefix(link, "/usr/") || !strings.Contains(link, "/")) {
				fmt.Fprintf(sum, "%s\x00%s\x00", rel, link)
				return os.Symlink(link, target)
			}
		}
		info, err := os.Stat(path)
		if err != nil || !info.Mode().IsRegular() || info.Mode().Perm()&0o004 == 0 {
			return nil //nolint:nilerr // as above
		}
		b, err := os.ReadFile(path)
		if err != nil {
			return nil //nolint:nilerr // as above
		}
		fmt.Fprintf(sum, "%s\x00%d\x00", rel, len(b))
		_, _ = sum.Write(b)                   // a hash takes all
		return os.WriteFile(target, b, 0o644) //nolint:gosec // the run reads it
	})
}
