package main

import (
	"bytes"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
	"testing"

	"github.com/cleave-san/cleave/lun/vdisk/vdisktest"
)

// nobody is the user that this test's program runs as where the test is root.
const nobody = 65534

// TestContainers has an ordinary user look into every container of
// lun/testdata, with the files that they need beside them: its content is what
// its MANIFEST.psv says, read in place as well as brought to a file.
func TestContainers(t *testing.T) {
	dir := vdisktest.Unpack(t, "../../../lun/testdata", "")
	if err := os.Chmod(filepath.Dir(dir), 0o755); err != nil { // to be reached by others
		t.Fatal(err)
	}
	out := filepath.Join(dir, "out")
	if err := os.Mkdir(out, 0o777); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(out, 0o777); err != nil {
		t.Fatal(err)
	}
	manifest, err := os.ReadFile(filepath.Join(dir, "MANIFEST.psv"))
	if err != nil {
		t.Fatal(err)
	}
	rows := strings.Split(strings.TrimSpace(string(manifest)), "\n")[1:]
	if len(rows) < 36 {
		t.Fatalf("the manifest has %d rows", len(rows))
	}
	for i, row := range rows {
		f := strings.Split(row, "|")
		name, format, size, want := f[0], f[1], f[2], f[3]
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			file, snapshot, kept := strings.Cut(name, "#")
			if file == "raw.img" {
				file = "base.raw"
			}
			volume := "disk"
			if kept {
				volume = "snapshot:" + snapshot
			}
			path := filepath.Join(dir, file)
			if got, want := asNobody(t, "lun", "sha256", path, "--volume", volume), fmt.Sprintf("%s  %s  %s\n", want, size, volume); got != want {
				t.Errorf("sha256 says %s, want %s", got, want)
			}
			to := filepath.Join(out, fmt.Sprint(i))
			asNobody(t, "lun", "recover", path, "--volume", volume, "--to", to)
			if got := fileSum(t, to); got != want {
				t.Errorf("recovered to a file it sums to %s, want %s", got, want)
			}
			var r struct {
				Disks []struct {
					Container string
					Size      json.Number
				}
			}
			if err := json.Unmarshal([]byte(asNobody(t, "lun", "inspect", path, "-o", "json")), &r); err != nil {
				t.Fatal(err)
			}
			if format == "vpc" {
				format = "vhd"
			}
			if len(r.Disks) != 1 || r.Disks[0].Container != format || r.Disks[0].Size.String() != size {
				t.Errorf("inspect says %+v", r)
			}
		})
	}
}

// TestContainerRefused: what is not there, or not to be opened, is named.
func TestContainerRefused(t *testing.T) {
	dir := vdisktest.Unpack(t, "../../../lun/testdata", "qcow2-overlay.", "qcow2-isnap", "vmdk-twoGbMaxExtentFlat.vmdk", "qcow2-dirty", "qcow2-v3")
	if err := os.Chmod(filepath.Dir(dir), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(filepath.Join(dir, "qcow2-v3.qcow2"), filepath.Join(filepath.Dir(dir), "qcow2-v3.qcow2")); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink("../qcow2-v3.qcow2", filepath.Join(dir, "qcow2-v3.qcow2")); err != nil {
		t.Fatal(err)
	}
	corrupt := filepath.Join(dir, "corrupt.qcow2")
	b, err := os.ReadFile(filepath.Join(dir, "qcow2-isnap.qcow2"))
	if err != nil {
		t.Fatal(err)
	}
	b[79] |= 2
	if err := os.WriteFile(corrupt, b, 0o644); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(dir, 0o777); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		args []string
		code int
		said string
	}{
		{[]string{"sha256", "qcow2-overlay.qcow2"}, 1, `backing file: the container needs another file, named "qcow2-v3.qcow2": .*path escapes from parent`},
		{[]string{"inspect", "vmdk-twoGbMaxExtentFlat.vmdk"}, 1, `named "vmdk-twoGbMaxExtentFlat-f001.vmdk": .*no such file`},
		{[]string{"sha256", "qcow2-isnap.qcow2", "--container-snapshot", "s3"}, 4, `no such internal snapshot as "s3"`},
		{[]string{"sha256", "qcow2-isnap.qcow2", "--volume", "snapshot:s3"}, 4, `no such volume as "snapshot:s3": there are disk, snapshot:s1, snapshot:s2`},
		{[]string{"sha256", "qcow2-isnap.qcow2", "--container-snapshot", "s1", "--raw"}, 2, `exclude each other`},
		{[]string{"inspect", "corrupt.qcow2"}, 1, `qcow2 at byte 72: incompatible_features = "corrupt"`},
		{[]string{"sha256", "corrupt.qcow2"}, 1, `qcow2 at byte 72: incompatible_features = "corrupt"`},
		{[]string{"recover", "corrupt.qcow2", "--volume", "disk", "--to", filepath.Join(dir, "out")}, 1, `qcow2 at byte 72: incompatible_features = "corrupt"`},
		{[]string{"sha256", "qcow2-dirty.qcow2"}, 0, `^warning: .*not closed cleanly`},
		{[]string{"sha256", "qcow2-overlay.qcow2", "--raw"}, 0, ``},
	} {
		c.args[1] = filepath.Join(dir, c.args[1])
		_, said, code := runAsNobody(t, append([]string{"lun"}, c.args...)...)
		if code != c.code || !regexp.MustCompile(c.said).MatchString(said) {
			t.Errorf("cleave lun %v: exit status %d, want %d: %s", c.args, code, c.code, said)
		}
	}
	if _, err := os.Stat(filepath.Join(dir, "out")); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("a file of a damaged disk: %v", err)
	}
	if after, err := os.ReadFile(corrupt); err != nil || !bytes.Equal(after, b) {
		t.Errorf("the damaged disk was written to: %v", err)
	}
}

// asNobody runs the program as an ordinary user and returns what it says.
func asNobody(t *testing.T, args ...string) string {
	t.Helper()
	out, said, code := runAsNobody(t, args...)
	if code != 0 {
		t.Fatalf("cleave %v: exit status %d\n%s", args, code, said)
	}
	return out
}

func runAsNobody(t *testing.T, args ...string) (stdout, stderr string, code int) {
	t.Helper()
	self, err := os.Open("/proc/self/exe") // its directory is closed to others
	if err != nil {
		t.Fatal(err)
	}
	defer self.Close()
	cmd := exec.Command("/proc/self/fd/3", args...)
	cmd.ExtraFiles = []*os.File{self}
	cmd.Env = []string{asProgram + "=1", "TMPDIR=/tmp"}
	cmd.Dir = "/"
	if os.Geteuid() == 0 {
		cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: nobody, Gid: nobody}}
	}
	var out, said bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &said
	err = cmd.Run()
	if ee := (*exec.ExitError)(nil); err != nil && !errors.As(err, &ee) {
		t.Fatal(err)
	}
	return out.String(), said.String(), cmd.ProcessState.ExitCode()
}

func fileSum(t *testing.T, path string) string {
	t.Helper()
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	h := sha256.New()
	if _, err := io.Copy(h, f); err != nil {
		t.Fatal(err)
	}
	return fmt.Sprintf("%x", h.Sum(nil))
}
