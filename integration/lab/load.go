package lab

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
)

const guestloadPackage = "github.com/cleave-san/cleave/plugin/demo/guestload"

// GuestLoad returns the static load program that guests run: the one beside the
// running program if there is one (`make build` puts it there), else, within
// the source tree, one built into the cache. Call it before Boot: a guest may
// not see what appears on the host later.
func GuestLoad(ctx context.Context) (string, error) {
	if self, err := os.Executable(); err == nil {
		beside := filepath.Join(filepath.Dir(self), "guestload")
		if _, err := os.Stat(beside); err == nil {
			return beside, nil
		}
	}
	cache, err := CacheDir()
	if err != nil {
		return "", err
	}
	dir := filepath.Join(cache, "bin")
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return "", fmt.Errorf("lab: %w", err)
	}
	// Under a name of its own and renamed: several tests may build it at once.
	tmp, err := os.MkdirTemp(dir, ".new-")
	if err != nil {
		return "", fmt.Errorf("lab: %w", err)
	}
	defer os.RemoveAll(tmp)
	cmd := exec.CommandContext(ctx, "go", "build", "-o", filepath.Join(tmp, "guestload"), guestloadPackage)
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		return "", fmt.Errorf("lab: no guestload beside the program, and building it failed: %w: %s", err, bytes.TrimSpace(out))
	}
	path := filepath.Join(dir, "guestload")
	if err := os.Rename(filepath.Join(tmp, "guestload"), path); err != nil {
		return "", fmt.Errorf("lab: %w", err)
	}
	return path, nil
}

// StartInserts starts `guestload insert` in a DB VM: 1, 2, 3, … in the table
// numbers, each commit recorded in Machine.Record. It returns once the first
// is committed.
func (m *Machine) StartInserts(ctx context.Context, guestload string) error {
	return m.startLoad(ctx, "insert", fmt.Sprintf(
		"%s insert --record /dev/virtio-ports/cleave.lab.record", quote(guestload)),
		"[ \"$(psql -XAtq -h /run/postgresql -U postgres postgres -c 'SELECT 1 FROM numbers LIMIT 1' 2>/dev/null)\" = 1 ]")
}

// StartCanary starts `guestload canary` on a device of the guest, e.g.
// /dev/vgdata/canary. It returns once the device holds a canary.
func (m *Machine) StartCanary(ctx context.Context, guestload, device string) error {
	return m.startLoad(ctx, "canary", fmt.Sprintf("%s canary --device %s", quote(guestload), quote(device)),
		fmt.Sprintf("%s canary-check --device %s >/dev/null 2>&1", quote(guestload), quote(device)))
}

// StopLoad stops a load ("insert" or "canary") and waits until it has ended. An
// error says so if it had ended before by itself.
func (m *Machine) StopLoad(ctx context.Context, load string) error {
	_, err := m.Run(ctx, fmt.Sprintf(`
f=/run/lab/load.%[1]s
kill "$(cat $f.pid)" || { echo "%[1]s had ended: $(cat $f.log)" >&2; exit 1; }
while kill -0 "$(cat $f.pid)" 2>/dev/null; do sleep 0.05; done
rm $f.pid`, load))
	return err
}

// startLoad runs command in the background and waits for the guest's condition
// ready, which ends early if the command does.
func (m *Machine) startLoad(ctx context.Context, load, command, ready string) error {
	_, err := m.Run(ctx, fmt.Sprintf(`
f=/run/lab/load.%s
%s >$f.log 2>&1 </dev/null &
echo $! >$f.pid
until %s; do
	kill -0 $(cat $f.pid) 2>/dev/null || { cat $f.log >&2; exit 1; }
	sleep 0.1
done`, load, command, ready))
	var exit *ExitError
	if errors.As(err, &exit) {
		return fmt.Errorf("starting the load %s: %w", load, err)
	}
	return err
}

// Numbers counts what `guestload insert` put into the table.
func (m *Machine) Numbers(ctx context.Context) (Numbers, error) {
	out, err := m.SQL(ctx, "SELECT count(*), coalesce(min(k), 0), coalesce(max(k), 0) FROM numbers")
	if err != nil {
		return Numbers{}, err
	}
	var n Numbers
	if _, err := fmt.Sscanf(out, "%d|%d|%d", &n.Count, &n.Min, &n.Max); err != nil {
		return n, fmt.Errorf("VM %s: counting numbers: %.60q: %w", m.vm.Name, out, err)
	}
	return n, nil
}
