package nbd

import (
	"bytes"
	"encoding/json"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"
)

// need skips where a foreign program is missing; make deps installs them.
func need(t *testing.T, pkg string, progs ...string) {
	t.Helper()
	for _, p := range progs {
		if _, err := exec.LookPath(p); err != nil {
			t.Skipf("needs %s (Debian package %s)", p, pkg)
		}
	}
}

func run(t *testing.T, name string, args ...string) string {
	t.Helper()
	out, err := exec.CommandContext(t.Context(), name, args...).CombinedOutput()
	if err != nil {
		t.Fatalf("%s %q: %v\n%s", name, args, err, out)
	}
	return string(out)
}

func TestLibnbdAgainstOurServer(t *testing.T) {
	need(t, "libnbd-bin", "nbdinfo", "nbdcopy")
	m := newMemory(64 << 20)
	socket := serve(t,
		Export{Name: "", Device: m, Description: "the default one"},
		Export{Name: "ro", Device: m, ReadOnly: true},
		Export{Name: "plain", Device: plain{m}})
	uri := "nbd+unix:///?socket=" + socket

	var info struct {
		Exports []struct {
			Name        string   `json:"export-name"`
			Description string   `json:"description"`
			Size        int64    `json:"export-size"`
			ReadOnly    bool     `json:"is_read_only"`
			Flush       bool     `json:"can_flush"`
			FUA         bool     `json:"can_fua"`
			Trim        bool     `json:"can_trim"`
			Zero        bool     `json:"can_zero"`
			Multi       bool     `json:"can_multi_conn"`
			Contexts    []string `json:"contexts"`
			Minimum     int      `json:"block_size_minimum"`
		} `json:"exports"`
	}
	if err := json.Unmarshal([]byte(run(t, "nbdinfo", "--json", "--list", uri)), &info); err != nil {
		t.Fatal(err)
	}
	if len(info.Exports) != 3 {
		t.Fatalf("exports: %+v", info.Exports)
	}
	for _, e := range info.Exports {
		if e.Size != 64<<20 || !e.Multi || e.ReadOnly != (e.Name == "ro") || e.Zero == e.ReadOnly || !e.Flush || !e.FUA ||
			e.Minimum != 512 || len(e.Contexts) != 1 || e.Trim != (e.Name == "") {
			t.Errorf("export %+v", e)
		}
	}
	if info.Exports[0].Description != "the default one" {
		t.Errorf("description %q", info.Exports[0].Description)
	}

	// nbdcopy uses several connections, many requests and block status.
	src, dst := filepath.Join(t.TempDir(), "src"), filepath.Join(t.TempDir(), "dst")
	want := make([]byte, 64<<20)
	copy(want[3<<20:], fill(1, 9<<20))
	copy(want[60<<20:], fill(2, 4<<20))
	if err := os.WriteFile(src, want, 0o600); err != nil {
		t.Fatal(err)
	}
	run(t, "nbdcopy", "--flush", src, uri)
	content, syncs := m.snapshot()
	if !bytes.Equal(content, want) {
		t.Fatal("nbdcopy into the server: content differs")
	}
	if syncs == 0 {
		t.Error("nbdcopy --flush did not reach Sync")
	}
	for _, name := range []string{"ro", "plain"} {
		run(t, "nbdcopy", "nbd+unix:///"+name+"?socket="+socket, dst)
		got, err := os.ReadFile(dst)
		if err != nil || !bytes.Equal(got, want) {
			t.Fatalf("nbdcopy out of %q: %v, equal %v", name, err, bytes.Equal(got, want))
		}
	}
	var extents []struct {
		Offset, Length int64
		Type           int
	}
	if err := json.Unmarshal([]byte(run(t, "nbdinfo", "--map", "--json", uri)), &extents); err != nil {
		t.Fatal(err)
	}
	if len(extents) < 4 || extents[0].Type != 3 || extents[0].Length != 3<<20 || extents[1].Type != 0 {
		t.Errorf("map %+v", extents)
	}
}

func TestQEMUAgainstOurServer(t *testing.T) {
	need(t, "qemu-utils", "qemu-img", "qemu-io")
	m := newMemory(32 << 20)
	socket := serve(t, Export{Name: "x", Device: m}, Export{Name: "ro", Device: m, ReadOnly: true})
	uri := "nbd+unix:///x?socket=" + socket
	run(t, "qemu-io", "-f", "raw", uri,
		"-c", "write -P 0x5a 0 8M", "-c", "write -f -P 0x5b 1M 4k", "-c", "flush",
		"-c", "discard 2M 1M", "-c", "write -z 4M 1M", "-c", "write -z -u 5M 1M",
		"-c", "read -P 0x5a 0 1M", "-c", "read -P 0x5b 1M 4k", "-c", "read -P 0 4M 2M", "-c", "read -P 0x5a 6M 2M",
		"-c", "aio_write -P 1 16M 1M", "-c", "aio_write -P 2 17M 1M", "-c", "aio_write -P 3 18M 1M", "-c", "aio_flush",
		"-c", "read -P 2 17M 1M")
	if b, _ := m.snapshot(); b[0] != 0x5a || b[1<<20] != 0x5b || b[4<<20] != 0 || b[18<<20] != 3 {
		t.Error("what qemu-io wrote did not arrive")
	}
	raw := filepath.Join(t.TempDir(), "raw")
	run(t, "qemu-img", "convert", "-f", "raw", "-O", "raw", "nbd+unix:///ro?socket="+socket, raw)
	run(t, "qemu-img", "compare", "-f", "raw", "-F", "raw", raw, uri)
	out, err := exec.CommandContext(t.Context(), "qemu-io", "-f", "raw", "nbd+unix:///ro?socket="+socket, "-c", "write 0 4k").CombinedOutput()
	if err == nil {
		t.Errorf("qemu-io wrote to a read-only export: %s", out)
	}
}

// gate is a device that answers no read before it is opened.
type gate struct {
	*memory
	asked chan struct{} // gets one of each read
	open  chan struct{}
}

func (g gate) ReadAt(p []byte, off int64) (int, error) {
	g.asked <- struct{}{}
	<-g.open
	return g.memory.ReadAt(p, off)
}

// TestServerEndsUnderForeignClients ends a server in the middle of a read: its
// clients get an error, and neither data nor silence.
func TestServerEndsUnderForeignClients(t *testing.T) {
	need(t, "libnbd-bin", "nbdcopy")
	need(t, "qemu-utils", "qemu-io")
	dir := t.TempDir()
	socket := filepath.Join(dir, "s")
	for _, args := range [][]string{
		{"nbdcopy", "nbd+unix:///?socket=" + socket, filepath.Join(dir, "to")},
		{"qemu-io", "-f", "raw", "nbd+unix:///?socket=" + socket, "-c", "read 0 1M"},
	} {
		g := gate{newMemory(4 << 20), make(chan struct{}, 1000), make(chan struct{})}
		if _, err := g.WriteAt(fill(1, 4<<20), 0); err != nil { // nothing of it is a hole
			t.Fatal(err)
		}
		stop := server(t, socket, Export{Device: g})
		cmd := exec.CommandContext(t.Context(), args[0], args[1:]...)
		ended := make(chan error, 1)
		go func() { ended <- cmd.Run() }()
		select {
		case <-g.asked:
		case err := <-ended:
			t.Fatalf("%s read nothing: %v", args[0], err)
		}
		stopped := make(chan struct{})
		go func() { defer close(stopped); stop() }()
		if err := <-ended; err == nil {
			t.Errorf("%s has read from a server that had ended", args[0])
		}
		close(g.open)
		<-stopped
	}
}

// start runs a foreign server until the test ends and waits for its socket.
func start(t *testing.T, socket, name string, args ...string) *exec.Cmd {
	t.Helper()
	cmd := exec.Command(name, args...)
	var log bytes.Buffer
	cmd.Stdout, cmd.Stderr = &log, &log
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
	})
	deadline := time.Now().Add(20 * time.Second)
	for {
		conn, err := net.Dial("unix", socket)
		if err == nil {
			conn.Close()
			return cmd
		}
		if time.Now().After(deadline) {
			t.Fatalf("%s did not come up: %v\n%s", name, err, log.String())
		}
		time.Sleep(5 * time.Millisecond) // poll with a deadline
	}
}

func TestOurClientAgainstNbdkit(t *testing.T) {
	need(t, "nbdkit", "nbdkit")
	for name, filters := range map[string][]string{
		"all":           nil,
		"no zero":       {"--filter=nozero"},
		"no structured": {"--no-sr"},
		"small blocks":  {"--filter=blocksize-policy", "blocksize-minimum=4096", "blocksize-maximum=1M", "blocksize-error-policy=error"},
		"late answers":  {"--filter=delay", "delay-read=1ms"},
	} {
		t.Run(name, func(t *testing.T) {
			socket := filepath.Join(t.TempDir(), "s")
			args := []string{"-f", "-U", socket, "-P", filepath.Join(t.TempDir(), "pid")}
			var params []string
			for _, f := range filters {
				if f[0] == '-' {
					args = append(args, f)
				} else {
					params = append(params, f)
				}
			}
			args = append(append(args, "memory", "80M"), params...)
			start(t, socket, "nbdkit", args...)
			exercise(t, dial(t, socket, ClientOptions{}))
		})
	}
}

func TestOurClientAgainstQemuNbd(t *testing.T) {
	need(t, "qemu-utils", "qemu-img", "qemu-nbd")
	dir := t.TempDir()
	image, socket := filepath.Join(dir, "disk.qcow2"), filepath.Join(dir, "s")
	run(t, "qemu-img", "create", "-q", "-f", "qcow2", image, "80M")
	start(t, socket, "qemu-nbd", "-t", "-e", "4", "-f", "qcow2", "-k", socket, "-x", "disk", image)
	c := dial(t, socket, ClientOptions{Export: "disk"})
	if !c.neg.structured || !c.neg.allocation {
		t.Error("qemu-nbd offers structured replies and base:allocation; not agreed")
	}
	exercise(t, c)
	if _, err := Dial(t.Context(), "unix", socket, ClientOptions{Export: "nope"}); err == nil {
		t.Error("an export that is not there was opened")
	}
}
