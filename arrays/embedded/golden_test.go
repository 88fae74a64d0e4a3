package embedded

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/cleave-san/cleave/arrays/driver"
	"github.com/cleave-san/cleave/arrays/embedded/disk"
)

// The golden array is one that lost its power in the middle of a split, as
// version 1 of the records had it. It was made by
//
//	CLEAVE_TEST_MAKE_GOLDEN=testdata/v1/array.tar.gz go test -run TestMakeGolden
//
// with the program of that version, and is never made anew.
const goldenV1 = "testdata/v1/array.tar.gz"

// goldenBlock is what block i of a golden volume holds in a generation.
func goldenBlock(name string, generation, i int) []byte {
	line := fmt.Appendf(nil, "volume %s, generation %d, block %d\n", name, generation, i)
	return bytes.Repeat(line, 4096/len(line)+1)[:4096]
}

func writeGolden(t *testing.T, d interface {
	WriteAt([]byte, int64) (int, error)
}, name string, generation int, blocks ...int) {
	t.Helper()
	for _, i := range blocks {
		if _, err := d.WriteAt(goldenBlock(name, generation, i), int64(i)*4096); err != nil {
			t.Fatal(err)
		}
	}
}

func wantGolden(t *testing.T, d io.ReaderAt, name string, generation int, blocks ...int) {
	t.Helper()
	got := make([]byte, 4096)
	for _, i := range blocks {
		if _, err := d.ReadAt(got, int64(i)*4096); err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(got, goldenBlock(name, generation, i)) {
			t.Fatalf("%s: block %d is not of generation %d: %.60q", name, i, generation, got)
		}
	}
}

func TestMakeGolden(t *testing.T) {
	out := os.Getenv("CLEAVE_TEST_MAKE_GOLDEN")
	if out == "" {
		t.Skip("made once for each version of the records")
	}
	faults := &faultyFS{FS: disk.OS()}
	o := options(testDir(t))
	o.FS = faults
	a := open(t, o)
	ctx := t.Context()

	_, whole := create(t, a, "whole", 512<<10, "a", "b")
	writeGolden(t, whole, "whole", 1, 0, 40, 127)

	_, split := create(t, a, "split", 512<<10, "a", "b", "c")
	writeGolden(t, split, "split", 1, 0, 32, 64)
	if _, err := a.Split(ctx, "clean", "split"); err != nil {
		t.Fatal(err)
	}
	writeGolden(t, split, "split", 2, 0)
	if err := a.Prepare(ctx, []driver.VolumeID{"split"}, driver.PrepareOptions{Tag: "skewed", AllowUnmirrored: true}); err != nil {
		t.Fatal(err)
	}
	snap, err := a.Split(ctx, "skewed", "split")
	if err != nil {
		t.Fatal(err)
	}
	writeGolden(t, split, "split", 3, 32)
	w, err := a.OpenWritable(snap.ID, "test")
	if err != nil {
		t.Fatal(err)
	}
	writeGolden(t, w, "split", 9, 64)
	if err := w.Sync(); err != nil {
		t.Fatal(err)
	}

	_, broken := create(t, a, "broken", 512<<10, "a", "b")
	writeGolden(t, broken, "broken", 1, 0, 100)
	faults.set(failing("write", "a", syscall.EIO))
	writeGolden(t, broken, "broken", 2, 0)
	faults.set(nil)

	_, fill := create(t, a, "filling", 4*mib, "a")
	writeGolden(t, fill, "filling", 1, 0, 256, 512, 768)
	a.SetResyncRate(1)
	if _, err := a.AddMirror(ctx, "filling", "b"); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the first region copied", func() bool {
		info, err := a.VolumeInfo("filling")
		return err == nil && info.Replicas[1].Copied > 0
	})

	_, pending := create(t, a, "pending", 512<<10, "a", "b", "c")
	writeGolden(t, pending, "pending", 1, 0, 127)
	cut := errors.New("made")
	faults.set(func(op, path string) error {
		if op != "sync" || !strings.Contains(path, "/pending/") {
			return nil
		}
		if cat, err := os.ReadFile(filepath.Join(o.StateDir, "catalogue.json")); err != nil || !bytes.Contains(cat, []byte(`"pending": [`)) {
			return err
		}
		pack(t, filepath.Dir(o.StateDir), out)
		return cut
	})
	if _, err := a.Split(ctx, "never", "pending"); !errors.Is(err, cut) {
		t.Fatal(err)
	}
}

// pack writes the regular files under dir to a compressed archive.
func pack(t *testing.T, dir, out string) {
	var b bytes.Buffer
	z := gzip.NewWriter(&b)
	w := tar.NewWriter(z)
	err := filepath.WalkDir(dir, func(path string, e fs.DirEntry, err error) error {
		if err != nil || !e.Type().IsRegular() {
			return err
		}
		body, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		name, err := filepath.Rel(dir, path)
		if err != nil {
			return err
		}
		if err := w.WriteHeader(&tar.Header{Name: name, Size: int64(len(body)), Mode: 0o600, Typeflag: tar.TypeReg}); err != nil {
			return err
		}
		_, err = w.Write(body)
		return err
	})
	if err = errors.Join(err, w.Close(), z.Close()); err == nil {
		err = os.WriteFile(out, b.Bytes(), 0o644)
	}
	if err != nil {
		t.Error(err)
	}
}

// unpack is the reverse of pack. Raw files come out sparse.
func unpack(t *testing.T, archive, dir string) {
	t.Helper()
	f, err := os.Open(archive)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	z, err := gzip.NewReader(f)
	if err != nil {
		t.Fatal(err)
	}
	for r := tar.NewReader(z); ; {
		h, err := r.Next()
		if err == io.EOF {
			return
		}
		if err != nil {
			t.Fatal(err)
		}
		path := filepath.Join(dir, filepath.FromSlash(h.Name))
		if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
			t.Fatal(err)
		}
		body, err := io.ReadAll(r)
		if err == nil {
			err = os.WriteFile(path, body, 0o600)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
}

// TestGoldenV1 opens an array of version 1 twice: what it held is there, what
// had been begun is finished or undone, and the second time says nothing new.
func TestGoldenV1(t *testing.T) {
	dir := testDir(t)
	unpack(t, goldenV1, dir)
	o := options(dir)
	for round := range 2 {
		ev := &collector{}
		o.OnEvent = ev.add
		a, err := Open(t.Context(), o)
		if err != nil {
			t.Fatal(err)
		}
		for _, name := range []string{"whole", "split", "broken", "filling", "pending"} {
			if err := a.WaitInSync(t.Context(), driver.VolumeID(name)); err != nil {
				t.Fatal(err)
			}
		}
		checkGoldenVolumes(t, a)
		if _, err := os.Stat(a.store.backup(1)); (err == nil) != (round == 0) || ev.count(Upgraded) > 1-round {
			t.Errorf("round %d: the old catalogue: %v; events %+v", round, err, ev.events)
		}
		if err := a.Close(); err != nil {
			t.Fatal(err)
		}
		if want := 1 - round; ev.count(SplitUndone) != want || ev.count(MapDamaged) != 0 || ev.count(MirrorDropped) != 0 {
			t.Errorf("round %d: events %+v", round, ev.events)
		}
	}
}

// A program that is older than the records says so and touches nothing.
func TestNewerRecordsAreRefused(t *testing.T) {
	o := options(testDir(t))
	a := open(t, o)
	a.Close()
	path := filepath.Join(o.StateDir, "catalogue.json")
	good, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	_, body, _ := bytes.Cut(good, []byte("\n"))
	newer, err := encodeRecord(catalogKind, catalogVersion+1, rawJSON(body))
	if err != nil {
		t.Fatal(err)
	}
	unknown, err := encodeRecord(catalogKind, catalogVersion, rawJSON(bytes.Replace(body, []byte("{"), []byte(`{"colour":"blue",`), 1)))
	if err != nil {
		t.Fatal(err)
	}
	for want, b := range map[string][]byte{"newer than this program": newer, "unknown field": unknown} {
		if err := os.WriteFile(path, b, 0o600); err != nil {
			t.Fatal(err)
		}
		if _, err := Open(t.Context(), o); err == nil || !strings.Contains(err.Error(), want) || strings.Contains(err.Error(), "\n") {
			t.Errorf("want %q: %v", want, err)
		}
		if now, _ := os.ReadFile(path); !bytes.Equal(now, b) {
			t.Error("the record was changed")
		}
	}
}

func checkGoldenVolumes(t *testing.T, a *Array) {
	t.Helper()
	device := func(name string) *Volume {
		h, err := a.OpenVolume(driver.VolumeID(name), "test")
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { h.Close() })
		return h
	}
	wantGolden(t, device("whole"), "whole", 1, 0, 40, 127)
	wantGolden(t, device("split"), "split", 2, 0)
	wantGolden(t, device("split"), "split", 3, 32)
	wantGolden(t, device("split"), "split", 1, 64)
	wantGolden(t, device("broken"), "broken", 2, 0)
	wantGolden(t, device("broken"), "broken", 1, 100)
	wantGolden(t, device("filling"), "filling", 1, 0, 256, 512, 768)
	wantGolden(t, device("pending"), "pending", 1, 0, 127)
	for name, mirrors := range map[driver.VolumeID]int{"whole": 2, "split": 1, "broken": 1, "filling": 2, "pending": 3} {
		info, err := a.VolumeInfo(name)
		if err != nil || info.Mirrors != mirrors {
			t.Errorf("%s: %+v, %v", name, info, err)
		}
		sameMirrors(t, a, name)
	}
	if info, _ := a.VolumeInfo("broken"); info.Replicas[0].State != driver.Broken || !strings.Contains(info.Replicas[0].Reason, "input/output error") {
		t.Errorf("broken mirror: %+v", info.Replicas)
	}
	ss := a.Snapshots()
	if len(ss) != 2 || ss[0].Tag != "clean" || ss[0].State != driver.Split || ss[1].Tag != "skewed" || ss[1].State != driver.Skewed {
		t.Fatalf("snapshots: %+v", ss)
	}
	for i, want := range []map[int][]int{{1: {0, 32, 64}}, {2: {0}, 1: {32}, 9: {64}}} {
		d, err := a.Open(t.Context(), ss[i].ID)
		if err != nil {
			t.Fatal(err)
		}
		for generation, blocks := range want {
			wantGolden(t, d, "split", generation, blocks...)
		}
		d.(io.Closer).Close()
	}
	for _, s := range ss { // the marks of the crash cover more than the two regions
		if s.ResyncBytes < 2*regionSize || s.ResyncBytes > s.Size {
			t.Errorf("resync of %s: %d bytes", s.Tag, s.ResyncBytes)
		}
	}
}
