package attach

import (
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
)

// nodeDirs are where distributions have open-iscsi keep its node records.
var nodeDirs = []string{"/etc/iscsi/nodes", "/var/lib/iscsi/nodes"}

// editNode sets values in a node record, which only root can read: iscsiadm's
// own way would show them in its arguments.
func editNode(dirs []string, target, portal string, set [][2]string) error {
	host, port, err := net.SplitHostPort(portal)
	if err != nil {
		return err
	}
	var files []string
	for _, dir := range dirs {
		records, _ := filepath.Glob(filepath.Join(dir, target, host+","+port+"*"))
		for _, r := range records {
			if st, err := os.Stat(r); err == nil && st.IsDir() {
				inside, _ := filepath.Glob(filepath.Join(r, "*"))
				files = append(files, inside...)
			} else {
				files = append(files, r)
			}
		}
	}
	if len(files) == 0 {
		return fmt.Errorf("no node record of %s at %s in %s", target, portal, strings.Join(dirs, " or "))
	}
	for _, path := range files {
		b, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		text, err := setValues(string(b), set)
		if err != nil {
			return fmt.Errorf("node record of %s: %w", target, err)
		}
		draft := path + ".new"
		if err := errors.Join(os.WriteFile(draft, []byte(text), 0o600), os.Chmod(draft, 0o600)); err != nil {
			return errors.Join(err, os.Remove(draft))
		}
		if err := os.Rename(draft, path); err != nil {
			return errors.Join(err, os.Remove(draft))
		}
	}
	return nil
}

// setValues replaces "key = value" lines, and adds those that are missing before
// the record's end.
func setValues(record string, set [][2]string) (string, error) {
	var b strings.Builder
	missing := map[string]string{}
	for _, kv := range set {
		if strings.ContainsAny(kv[1], "\n\r") {
			return "", fmt.Errorf("%s: a value of several lines", kv[0])
		}
		missing[kv[0]] = kv[1]
	}
	add := func() {
		for _, kv := range set {
			if v, ok := missing[kv[0]]; ok {
				fmt.Fprintf(&b, "%s = %s\n", kv[0], v)
				delete(missing, kv[0])
			}
		}
	}
	for l := range strings.Lines(record) {
		key, _, _ := strings.Cut(l, "=")
		key = strings.TrimSpace(key)
		if v, ok := missing[key]; ok {
			fmt.Fprintf(&b, "%s = %s\n", key, v)
			delete(missing, key)
			continue
		}
		if strings.HasPrefix(l, "# END RECORD") {
			add()
		}
		b.WriteString(l)
	}
	add()
	return b.String(), nil
}
