package recovery_test

import (
	"bufio"
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/cleave-san/cleave/lun"
	"github.com/cleave-san/cleave/lun/fs"
	btrfsfiles "github.com/cleave-san/cleave/lun/fs/btrfs"
	"github.com/cleave-san/cleave/lun/luntest"
	"github.com/cleave-san/cleave/lun/open"
	"github.com/cleave-san/cleave/lun/recovery"
	"github.com/cleave-san/cleave/lun/store/btrfs"
)

// below is what a directory of a Btrfs holds, the default subvolume's own paths
// first: a sum for each regular file.
func below(t testing.TB, dev lun.Device, path string) map[string]string {
	t.Helper()
	f, err := btrfs.Open(dev)
	if err != nil {
		t.Fatal(err)
	}
	x, err := btrfsfiles.Open(f, 0)
	if err != nil {
		t.Fatal(err)
	}
	start, err := fs.Find(x, path)
	if err != nil {
		t.Fatal(err)
	}
	out := make(map[string]string)
	if err := fs.Walk(x, start, func(v fs.Visit) error {
		if v.Err != nil || v.Stat.Type != fs.Regular {
			return v.Err
		}
		f, err := x.Open(v.Stat.Ref)
		if err != nil {
			return err
		}
		h := sha256.New()
		_, err = io.Copy(h, io.NewSectionReader(f, 0, f.Size()))
		out["./"+v.Path] = hex.EncodeToString(h.Sum(nil))
		return err
	}); err != nil {
		t.Fatal(err)
	}
	return out
}

func oracle(t testing.TB, list string) map[string]string {
	t.Helper()
	dir, err := luntest.Testdata()
	if err != nil {
		t.Fatal(err)
	}
	b, err := os.ReadFile(filepath.Join(dir, list))
	if err != nil {
		t.Fatal(err)
	}
	out := make(map[string]string)
	for s := bufio.NewScanner(bytes.NewReader(b)); s.Scan(); {
		sum, name, _ := strings.Cut(s.Text(), "  ")
		out[name] = sum
	}
	return out
}

// TestBtrfs: the snapshot has the name that the guest mounts, in a partition.
func TestBtrfs(t *testing.T) {
	img := luntest.Image(t, "btrfs-open1")
	disk := partitioned(img)
	c := probe(t, open.Source{Name: "disk", Device: luntest.ReadOnly(disk)})
	var names []string
	for _, v := range c.Volumes() {
		names = append(names, v.Name)
	}
	if want := []string{"disk", "p1", "subvol:@", "subvol:@snap"}; !slices.Equal(names, want) {
		t.Fatalf("volumes %v, want %v", names, want)
	}
	r, err := recovery.Inspect(context.Background(), c)
	if err != nil {
		t.Fatal(err)
	}
	if len(r.Findings) > 0 || len(r.Keepers) != 1 || len(r.Keepers[0].Subvolumes) != 2 {
		t.Fatalf("%+v", r)
	}
	s := r.Keepers[0].Subvolumes[1]
	if s.ID != 257 || s.Path != "@snap" || s.Generation != 10 || s.ParentUUID != r.Keepers[0].Subvolumes[0].UUID || !s.ReadOnly || s.Default || s.Created.IsZero() || s.Origin != "p1/subvol:@" {
		t.Errorf("%+v", s)
	}
	got, err := recovery.Verify(context.Background(), c, []recovery.Expected{{Volume: s.ParentUUID, Snapshot: s.UUID}, {Volume: s.UUID, Snapshot: s.UUID}})
	if err != nil || !got[0].OK || got[1].OK {
		t.Errorf("%+v, %v", got, err)
	}
	if _, err := recovery.OpenView(context.Background(), c, recovery.ViewOptions{ReadOnly: true, Snapshots: []string{"subvol:@"}}); !errors.Is(err, recovery.ErrChoice) {
		t.Errorf("what is no snapshot: %v", err)
	}
	v, err := recovery.OpenView(context.Background(), c, recovery.ViewOptions{ReadOnly: true})
	if err != nil {
		t.Fatal(err)
	}
	defer v.Close()
	if len(v.Volumes) != 1 || v.Volumes[0].SnapshotUUID != s.UUID {
		t.Errorf("%+v", v.Volumes)
	}
	after := content(t, v.Clean[0])[1<<20:][:len(img)]
	for path, list := range map[string]string{"@": "btrfs-open1.snap.sha256", "@snap": "btrfs-open1.live.sha256"} {
		if got, want := fmt.Sprint(below(t, luntest.ReadOnly(after), path)), fmt.Sprint(oracle(t, list)); got != want {
			t.Errorf("%s is %s, want %s", path, got, want)
		}
	}
	// As a volume it is what is mounted by default, too.
	vol, err := c.Volume(s.UUID)
	if err != nil {
		t.Fatal(err)
	}
	d, err := vol.Open()
	if err != nil {
		t.Fatal(err)
	}
	mounted := content(t, d)
	if got, want := fmt.Sprint(below(t, luntest.ReadOnly(mounted), "")), fmt.Sprint(oracle(t, "btrfs-open1.snap.sha256")); got != want {
		t.Errorf("by default %s, want %s", got, want)
	}
	check(t, after)
	check(t, mounted)
}

// check has btrfs-progs look at a file system.
func check(t testing.TB, content []byte) {
	t.Helper()
	if _, err := exec.LookPath("btrfs"); err != nil {
		t.Log("btrfs-progs is not installed")
		return
	}
	path := filepath.Join(t.TempDir(), "image")
	if err := os.WriteFile(path, content, 0o600); err != nil {
		t.Fatal(err)
	}
	if out, err := exec.Command("btrfs", "check", path).CombinedOutput(); err != nil || !strings.Contains(string(out), "no error found") {
		t.Errorf("btrfs check: %v: %s", err, out)
	}
}

// TestBtrfsLayouts puts back subvolumes where distributions and people have them,
// on file systems of all kinds, and has the kernel mount them.
func TestBtrfsLayouts(t *testing.T) {
	if b, _ := os.ReadFile("/proc/filesystems"); os.Getuid() != 0 || !strings.Contains(string(b), "btrfs") {
		t.Skip("only root mounts Btrfs, and not every kernel has it")
	}
	if _, err := exec.LookPath("mkfs.btrfs"); err != nil {
		t.Skip("btrfs-progs is not installed")
	}
	for _, c := range []struct{ name, mkfs, layout, snap, mount, want string }{
		{"names", "--csum xxhash", "btrfs su create $D/@; $W $D/@ old; btrfs su snap -r $D/@ $D/a-much-longer-name; $W $D/@ new", "a-much-longer-name", "subvol=@", "old"},
		{"default", "--csum sha256 -n 4k", "btrfs su create $D/@; $W $D/@ old; btrfs su snap -r $D/@ $D/s; $W $D/@ new; btrfs su set-default $D/@", "s", "rw", "old"},
		{"top level", "-m single", "$W $D old; btrfs su snap $D $D/s; $W $D new", "s", "rw", "old"},
		{"snapper", "-n 64k", "btrfs su create $D/@; btrfs su create $D/@/.snapshots; mkdir $D/@/.snapshots/1 $D/@/.snapshots/2; btrfs su snap $D/@ $D/@/.snapshots/1/snapshot; " +
			"L=$D/@/.snapshots/1/snapshot; $W $L old; btrfs su snap -r $L $D/@/.snapshots/2/snapshot; $W $L new; btrfs su set-default $L", "@/.snapshots/2/snapshot", "rw", "old"},
		{"other parent", "", "btrfs su create $D/@; btrfs su create $D/@backup; mkdir $D/@backup/dir; $W $D/@ old; btrfs su snap -r $D/@ $D/@backup/dir/s; $W $D/@ new", "@backup/dir/s", "subvol=@", "old"},
	} {
		t.Run(c.name, func(t *testing.T) {
			image, dir := filepath.Join(t.TempDir(), "image"), t.TempDir()
			script := `set -e
				W() { mkdir -p $1/etc; for i in 1 2 3 4 5; do echo "$2 $i" > $1/etc/$i; head -c 20000 /dev/urandom > $1/etc/big$i; done; }
				truncate -s 200M $I; mkfs.btrfs -q ` + c.mkfs + ` $I; mount -o loop $I $D; trap "umount $D" EXIT
				` + strings.ReplaceAll(c.layout, "$W", "W")
			bash(t, script, image, dir)
			src := source(t, image)
			snap := []string{"subvol:" + c.snap}
			v, err := recovery.OpenView(context.Background(), probe(t, src), recovery.ViewOptions{ReadOnly: true, Snapshots: snap})
			if err != nil {
				t.Fatal(err)
			}
			defer v.Close()
			view := filepath.Join(t.TempDir(), "view")
			if err := recovery.Copy(context.Background(), v.Clean[0], view, nil); err != nil {
				t.Fatal(err)
			}
			inPlaceFile(t, image, snap)
			for _, after := range []string{view, image} {
				got := bash(t, `btrfs check $I 2>&1 | grep -q "no error found" || { btrfs check $I; exit 1; }
					mount -o loop,`+c.mount+` $I $D; trap "umount $D" EXIT; cat $D/etc/3; echo changed > $D/etc/3; btrfs su list $D > /dev/null
					cd $D/etc; sha256sum big* > sums`, after, dir)
				if got != c.want+" 3\n" {
					t.Errorf("after the recovery (%s) the guest reads %q", filepath.Base(after), got)
				}
				bash(t, `btrfs check $I 2>&1 | grep -q "no error found"
					mount -o loop,`+c.mount+` $I $D; trap "umount $D" EXIT; cd $D/etc; sha256sum -c --quiet sums; cd /; btrfs scrub start -B $D > /dev/null`, after, dir)
			}
		})
	}
}

// inPlaceFile recovers a file in place.
func inPlaceFile(t *testing.T, path string, snapshots []string) {
	t.Helper()
	d := openWritten(t, path)
	f, err := os.Create(filepath.Join(t.TempDir(), "journal"))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	p, err := recovery.PrepareInPlace(t.Context(), probe(t, open.Source{Name: path, Device: d}), recovery.InPlaceOptions{Snapshots: snapshots, Journal: f, DiscardOthers: true})
	if err != nil {
		t.Fatal(err)
	}
	if err := p.Run(t.Context(), nil); err != nil {
		t.Fatal(err)
	}
}

func bash(t *testing.T, script, image, dir string) string {
	t.Helper()
	cmd := exec.Command("bash", "-c", script)
	cmd.Env = append(os.Environ(), "I="+image, "D="+dir)
	var out, say bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &say
	if err := cmd.Run(); err != nil {
		t.Fatalf("%v: %s%s", err, out.Bytes(), say.Bytes())
	}
	return out.String()
}
