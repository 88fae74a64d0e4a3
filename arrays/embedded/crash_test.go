package embedded

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/cleave-san/cleave/arrays/arraytest"
	"github.com/cleave-san/cleave/arrays/driver"
	"github.com/cleave-san/cleave/arrays/embedded/disk/loopfs"
	"github.com/cleave-san/cleave/lun"
)

// The crash tests run this test binary again as a daemon under load and kill it
// with SIGKILL at any time. The page cache survives that, so that all that was
// acknowledged has to be there.

const crashVolumes = 3

var crashStreams = []arraytest.Stream{
	{ID: 1, Base: 0, Size: 4096, Slots: 512},
	{ID: 2, Base: 4 * mib, Size: 192 << 10, Slots: 16},
	{ID: 3, Base: 8 * mib, Size: 512, Slots: 4096},
}

func crashOptions(dir string) Options {
	o := options(dir)
	o.LogIdle = 4 * time.Millisecond // marks come and go all the time
	return o
}

// ackFile is where a stream's last acknowledged write is noted.
func ackFile(dir string, s arraytest.Stream) string {
	return filepath.Join(dir, fmt.Sprintf("ack-%d", s.ID))
}

func acknowledged(dir string, s arraytest.Stream) uint64 {
	b, err := os.ReadFile(ackFile(dir, s))
	if err != nil || len(b) < 8 {
		return 0
	}
	return binary.LittleEndian.Uint64(b)
}

// crashWriter is the process that is killed.
func crashWriter(dir string) {
	fail := func(err error) {
		if err != nil {
			fmt.Fprintln(os.Stderr, "crash writer:", err)
			os.Exit(3)
		}
	}
	ctx := context.Background()
	a, err := Open(ctx, crashOptions(dir))
	fail(err)
	var ids []driver.VolumeID
	var devs []lun.Device
	for i := range crashVolumes {
		info, err := a.CreateVolume(ctx, CreateVolume{
			Name: fmt.Sprintf("v%d", i), Size: 32 * mib, Pools: []string{"a", "b", "c"}, Snapshots: crashPolicy(i),
		})
		fail(err)
		h, err := a.OpenVolume(info.ID, "crash writer")
		fail(err)
		ids, devs = append(ids, info.ID), append(devs, h)
	}
	for _, s := range crashStreams {
		go func() {
			ack, err := os.OpenFile(ackFile(dir, s), os.O_RDWR|os.O_CREATE, 0o600)
			fail(err)
			buf, note := make([]byte, s.Size), make([]byte, 8)
			for k := acknowledged(dir, s) + 1; ; k++ {
				fail(s.Write(devs, k, buf))
				binary.LittleEndian.PutUint64(note, k)
				_, err := ack.WriteAt(note, 0)
				fail(err)
			}
		}()
	}
	// Splits, writes to the splits, resyncs and deletions, for ever.
	rng := rand.New(rand.NewPCG(uint64(time.Now().UnixNano()), 1))
	for i := 0; ; i++ {
		tag := driver.Tag(fmt.Sprintf("p%d-%d", os.Getpid(), i))
		fail(a.Prepare(ctx, ids, driver.PrepareOptions{Tag: tag, AllowUnmirrored: true}))
		fail(os.WriteFile(filepath.Join(dir, "tag-"+string(tag)), nil, 0o600))
		ss, err := a.SplitGroup(ctx, tag, ids)
		fail(err)
		if rng.IntN(2) == 0 {
			w, err := a.OpenWritable(ss[0].ID, "crash writer")
			fail(err)
			// In an area of its own, so that the streams can be checked.
			_, err = w.WriteAt(make([]byte, 70<<10), 24*mib+rng.Int64N(100)*4096)
			fail(err)
			_, err = w.WriteAt([]byte("skewed"), 24*mib)
			fail(err)
			w.Close()
		}
		fail(os.Remove(filepath.Join(dir, "tag-"+string(tag)))) // from here on it may be there in part
		for _, s := range ss {
			if rng.IntN(3) == 0 || s.Method == driver.ArraySnapshot {
				fail(a.Delete(ctx, s.ID))
			} else {
				fail(a.Resync(ctx, s.ID))
			}
		}
	}
}

func TestKilledUnderLoad(t *testing.T) {
	killUnderLoad(t, testDir(t), 12)
}

// The same on a file system with reflinks, where the snapshots of two of the
// three volumes are clones.
func TestKilledUnderLoadReflink(t *testing.T) {
	dir := loopfs.Mount(t, loopfs.XFS, 1<<30).Dir
	t.Setenv(reflinkEnv, "1")
	killUnderLoad(t, dir, 8)
}

const reflinkEnv = "CLEAVE_TEST_CRASH_REFLINK"

func crashPolicy(i int) SnapshotPolicy {
	if os.Getenv(reflinkEnv) != "" && i > 0 {
		return ByReflink
	}
	return ByMirror
}

func killUnderLoad(t *testing.T, dir string, rounds int) {
	switch {
	case raceEnabled: // make test has all of them without the detector
		rounds = 3
	case testing.Short():
		rounds = 5
	}
	seed := uint64(time.Now().UnixNano())
	rng := rand.New(rand.NewPCG(seed, 0))
	t.Logf("seed %d", seed)
	for round := range rounds {
		killWriter(t, dir, func() bool { return true }, time.Duration(20+rng.IntN(300))*time.Millisecond)
		if err := checkAfterCrash(t, dir, false); err != nil {
			t.Fatalf("round %d: %v", round, err)
		}
	}
}

// killWriter runs a writer and kills it a while after it has begun.
func killWriter(t *testing.T, dir string, begun func() bool, after time.Duration) {
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), "CLEAVE_TEST_CRASH_WRITER="+dir)
	var out strings.Builder
	cmd.Stdout, cmd.Stderr = &out, &out
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the writer has begun", begun)
	timer := time.AfterFunc(after, func() { cmd.Process.Kill() })
	err := cmd.Wait()
	timer.Stop()
	var ee *exec.ExitError
	if !errors.As(err, &ee) || ee.Exited() {
		t.Fatalf("the writer ended by itself: %v\n%s", err, out.String())
	}
}

// checkAfterCrash says what is wrong after a kill. rescanned: the catalogue was
// lost and made anew, so that all is compared, and events say so.
func checkAfterCrash(t *testing.T, dir string, rescanned bool) error {
	var ev collector
	o := crashOptions(dir)
	o.OnEvent = ev.add
	a, err := Open(t.Context(), o)
	if err != nil {
		return err
	}
	defer a.Close()
	// Volumes are made one by one, and the first crash may come early.
	infos := a.Volumes()
	if len(infos) < crashVolumes {
		return nil
	}
	if n := ev.count(MirrorDropped) + ev.count(MapDamaged) + ev.count(VolumeOffline); n > 0 && !rescanned {
		return fmt.Errorf("%d events of damage after a kill: %+v", n, ev.events)
	}
	var devs []io.ReaderAt
	for _, info := range infos {
		h, err := a.OpenVolume(info.ID, "check")
		if err != nil {
			return err
		}
		defer h.Close()
		devs = append(devs, h)
	}
	for _, s := range crashStreams { // already while mirrors are being compared
		last, err := s.Check(devs)
		if err != nil {
			return err
		}
		if acked := acknowledged(dir, s); last < acked {
			return fmt.Errorf("stream %d: write %d was acknowledged, the last there is %d", s.ID, acked, last)
		}
	}
	if err := checkSplits(a, dir, infos); err != nil {
		return err
	}
	if err := noStrays(a); err != nil && !rescanned {
		return err
	}
	for _, s := range a.Snapshots() {
		giveBack := a.Resync
		if s.Method == driver.ArraySnapshot {
			giveBack = a.Delete
		}
		if err := giveBack(t.Context(), s.ID); err != nil {
			return err
		}
	}
	var wg sync.WaitGroup
	for _, info := range infos {
		wg.Go(func() {
			if err := a.WaitInSync(t.Context(), info.ID); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	for _, info := range infos {
		sameMirrors(t, a, info.ID)
	}
	return a.Close()
}

// checkSplits checks that every tag whose split had begun, and had not begun to
// be given back, is there for all volumes or none, and holds a prefix.
func checkSplits(a *Array, dir string, infos []VolumeInfo) error {
	marks, _ := filepath.Glob(filepath.Join(dir, "tag-*"))
	for _, m := range marks {
		tag := driver.Tag(strings.TrimPrefix(filepath.Base(m), "tag-"))
		ss, err := a.Lookup(context.Background(), tag)
		if err != nil {
			return err
		}
		if len(ss) != 0 && len(ss) != len(infos) {
			return fmt.Errorf("tag %s has %d of %d snapshots", tag, len(ss), len(infos))
		}
		var devs []io.ReaderAt
		for _, info := range infos {
			for _, s := range ss {
				if s.Volume != info.ID {
					continue
				}
				d, err := a.OpenSnapshot(s.ID, "check")
				if err != nil {
					return err
				}
				defer d.Close()
				devs = append(devs, d)
			}
		}
		if len(devs) > 0 {
			for _, s := range crashStreams {
				if _, err := s.Check(devs); err != nil {
					return fmt.Errorf("split of tag %s: %w", tag, err)
				}
			}
		}
		os.Remove(m)
	}
	return nil
}

// noStrays checks that every raw file in the pools is a mirror's or a
// snapshot's.
func noStrays(a *Array) error {
	known := map[string]bool{}
	for _, v := range a.Volumes() {
		for _, m := range v.Replicas {
			known[m.File] = true
		}
	}
	for _, s := range a.Snapshots() {
		known[s.File] = true
	}
	for _, p := range a.Pools() {
		files, err := filepath.Glob(filepath.Join(p.Dir, "*", "*.raw"))
		if err != nil {
			return err
		}
		for _, f := range files {
			if !known[f] {
				return fmt.Errorf("%s belongs to nothing", f)
			}
		}
	}
	return nil
}
