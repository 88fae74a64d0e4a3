package main

import (
	"bytes"
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
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

// asNobody runs the program as an ordinary user and returns what it says.
func asNobody(t *testing.T, args ...string) string {
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
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	b, err := cmd.Output()
	if err != nil {
		t.Fatalf("cleave %v: %v\n%s", args, err, stderr.String())
	}
	return string(b)
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
