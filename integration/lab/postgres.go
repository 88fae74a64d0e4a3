package lab

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
)

// clusterConf is appended to the cluster's postgresql.conf.
const clusterConf = `
listen_addresses = '*'
unix_socket_directories = '/run/postgresql'
shared_buffers = 32MB
max_connections = 20
logging_collector = off
`

// clusterHBA lets the host in: the forwarded port is bound to 127.0.0.1 there.
const clusterHBA = `
host all all 10.0.2.2/32 trust
`

// clusterTemplate returns an archive of an empty PostgreSQL cluster with data checksums, made
// once on the host: initdb takes under a second here and half a minute in a
// guest under emulation. A new db VM unpacks it on its own disk.
func clusterTemplate(ctx context.Context) (string, error) {
	bins, _ := filepath.Glob("/usr/lib/postgresql/*/bin/initdb")
	if len(bins) == 0 {
		return "", errors.New("lab: PostgreSQL is not installed (Debian: postgresql; run `make deps`)")
	}
	initdb := bins[len(bins)-1]
	version := strings.Split(initdb, "/")[4]
	cache, err := CacheDir()
	if err != nil {
		return "", err
	}
	path := filepath.Join(cache, "pgcluster-2-"+version+".tar")
	if _, err := os.Stat(path); err == nil {
		return path, nil
	}
	if err := os.MkdirAll(cache, 0o755); err != nil {
		return "", fmt.Errorf("lab: %w", err)
	}
	// Not in the cache directory: the user postgres may not enter it.
	tmp, err := os.MkdirTemp("", "cleave-pg-")
	if err != nil {
		return "", fmt.Errorf("lab: %w", err)
	}
	defer os.RemoveAll(tmp)
	cmd := exec.CommandContext(ctx, initdb, "-D", filepath.Join(tmp, "main"), "-U", "postgres",
		"--data-checksums", "--auth=trust", "--no-sync", "--no-instructions", "--encoding=UTF8", "--locale=C.UTF-8")
	cmd.Dir = tmp
	if os.Geteuid() == 0 { // initdb refuses to run as root
		if cmd.SysProcAttr, err = asPostgres(tmp); err != nil {
			return "", err
		}
	}
	if out, err := cmd.CombinedOutput(); err != nil {
		return "", fmt.Errorf("lab: initdb: %w: %s", err, strings.TrimSpace(string(out)))
	}
	for name, text := range map[string]string{"postgresql.conf": clusterConf, "pg_hba.conf": clusterHBA} {
		if err := appendTo(filepath.Join(tmp, "main", name), text); err != nil {
			return "", err
		}
	}
	// One archive: a guest reads one large file over 9p ten times faster than
	// the thousand small ones in it.
	archive, err := exec.CommandContext(ctx, "tar", "-C", filepath.Join(tmp, "main"), "--sparse", "-cf", "-", ".").Output()
	if err != nil {
		return "", fmt.Errorf("lab: packing the cluster: %w", err)
	}
	return path, writeAtomically(path, archive)
}

// asPostgres gives dir to the user postgres and says how to run as that user.
func asPostgres(dir string) (*syscall.SysProcAttr, error) {
	u, err := user.Lookup("postgres")
	if err != nil {
		return nil, fmt.Errorf("lab: %w", err)
	}
	uid, err := strconv.ParseUint(u.Uid, 10, 32)
	if err != nil {
		return nil, fmt.Errorf("lab: user postgres: %w", err)
	}
	gid, err := strconv.ParseUint(u.Gid, 10, 32)
	if err != nil {
		return nil, fmt.Errorf("lab: user postgres: %w", err)
	}
	if err := os.Chown(dir, int(uid), int(gid)); err != nil {
		return nil, fmt.Errorf("lab: %w", err)
	}
	return &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: uint32(uid), Gid: uint32(gid)}}, nil
}

func appendTo(path, text string) error {
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_APPEND, 0)
	if err != nil {
		return fmt.Errorf("lab: %w", err)
	}
	if _, err := f.WriteString(text); err != nil {
		f.Close()
		return fmt.Errorf("lab: %s: %w", path, err)
	}
	return f.Close()
}
