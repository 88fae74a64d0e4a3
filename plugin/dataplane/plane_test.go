package dataplane

import (
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"net/netip"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/cleave-san/cleave/arrays/driver"
	"github.com/cleave-san/cleave/arrays/embedded/remote"
	"github.com/cleave-san/cleave/lun/recovery/worker"
)

const (
	targetIQN = "iqn.2026-01.net.example:cleave"
	alice     = "iqn.1993-08.org.debian:01:alice"
	bob       = "iqn.1993-08.org.debian:01:bob"
)

// The test binary is also the recovery worker and the daemon that gets killed.
func TestMain(m *testing.M) {
	if len(os.Args) > 1 {
		switch os.Args[1] {
		case "worker":
			os.Exit(worker.Main(os.Args[2:], os.Stdin, os.Stdout, os.Stderr))
		case "daemon":
			daemon(os.Args[2])
		}
	}
	goleak.VerifyTestMain(m)
}

func daemon(config string) {
	var c Config
	b, err := os.ReadFile(config)
	if err == nil {
		err = json.Unmarshal(b, &c)
	}
	if err == nil {
		ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM)
		defer stop()
		c.Ready = func(remote.Status) { fmt.Println("ready") }
		err = Run(ctx, c, slog.New(slog.NewTextHandler(os.Stderr, nil)))
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	os.Exit(0)
}

// config is a data plane on a port of its own.
func config(t *testing.T) Config {
	t.Helper()
	dir := t.TempDir()
	return Config{
		StateDir: filepath.Join(dir, "state"),
		Pools:    map[string]string{"a": filepath.Join(dir, "a"), "b": filepath.Join(dir, "b"), "c": filepath.Join(dir, "c")},
		Portals:  []Portal{{Addr: netip.MustParseAddrPort("127.0.0.1:0")}},
		IQN:      targetIQN, Socket: filepath.Join(dir, "control"),
	}
}

// run runs a data plane in this process until the test ends or stop is called.
func run(t *testing.T, c Config) (cl *remote.Client, stop func()) {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	ready, done := make(chan struct{}), make(chan struct{})
	c.Ready = func(remote.Status) { close(ready) }
	var err error
	go func() { defer close(done); err = Run(ctx, c, nil) }()
	stopped := false
	stop = func() {
		if stopped {
			return
		}
		stopped = true
		cancel()
		<-done
		if err != nil {
			t.Errorf("Run: %v", err)
		}
	}
	t.Cleanup(stop)
	select {
	case <-ready:
	case <-done:
		t.Fatalf("data plane did not come up: %v", err)
	}
	return remote.New(c.Socket), stop
}

// volume makes a volume of two mirrors in sync.
func volume(t *testing.T, c *remote.Client, name string, size int64) remote.Volume {
	t.Helper()
	v, err := c.CreateVolume(t.Context(), remote.CreateVolumeRequest{Name: name, Size: size, Pools: []string{"a", "b"}})
	if err != nil {
		t.Fatal(err)
	}
	if err := c.WaitInSync(t.Context(), v.ID); err != nil {
		t.Fatal(err)
	}
	return v
}

func need(t *testing.T, progs ...string) {
	t.Helper()
	for _, p := range progs {
		if _, err := exec.LookPath(p); err != nil {
			t.Skipf("needs %s (Debian packages qemu-utils, qemu-block-extra)", p)
		}
	}
}

// disk is a LUN as QEMU's initiator is told of it.
func disk(p driver.Path, who string, extra ...string) string {
	return strings.Join(append([]string{
		"driver=raw,file.driver=iscsi,file.transport=tcp", "file.portal=" + p.Portals[0], "file.target=" + p.IQN,
		fmt.Sprintf("file.lun=%d", p.LUN), "file.initiator-name=" + who,
	}, extra...), ",")
}

// qemuIO runs commands on a LUN. qemu-io exits 0 when a command fails; its
// complaint is then in its output.
func qemuIO(t *testing.T, image string, objects []string, commands ...string) error {
	t.Helper()
	args := append([]string{}, objects...)
	if !strings.Contains(strings.Join(commands, " "), "write") {
		args = append(args, "-r")
	}
	args = append(args, "--image-opts", image)
	for _, c := range commands {
		args = append(args, "-c", c)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 60*time.Second)
	defer cancel()
	out, err := exec.CommandContext(ctx, "qemu-io", args...).CombinedOutput()
	text := string(out)
	for _, bad := range []string{"failed", "rror", "Pattern verification"} {
		if err == nil && strings.Contains(text, bad) {
			err = fmt.Errorf("qemu-io complained")
		}
	}
	if err != nil {
		return fmt.Errorf("%w: %s", err, strings.TrimSpace(text))
	}
	return nil
}

// kindOf is what a client makes of an error.
func kindOf(err error) driver.Kind { return remote.New("").Kind(err) }
