package attach

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"testing"
	"time"

	"github.com/cleave-san/cleave/lun/process"
)

// attacher has the test program attach an image, and detach it again.
const attacher = "attacher"

func attachAndDetach(dir, img string) int {
	h, err := New(Options{State: filepath.Join(dir, "state"), Run: filepath.Join(dir, "run")})
	if err == nil {
		var what []byte
		what, err = json.Marshal(image{Path: img})
		if err == nil {
			_, err = h.Attach(context.Background(), Request{Source: img, Open: what, Writable: true, Method: FUSE})
		}
	}
	if err == nil {
		fmt.Println("attached")
		_, err = h.Detach(context.Background(), img)
	}
	if err != nil {
		fmt.Println(err)
		return 1
	}
	return 0
}

// TestAttacherKilled kills whoever attaches and detaches, at ever later moments,
// until it comes to its end. Whatever it leaves, Detach takes away.
func TestAttacherKilled(t *testing.T) {
	b := newBench(t)
	dir := filepath.Dir(b.image)
	states := map[State]int{}
	began := time.Now()
	if out, err := exec.Command("/proc/self/exe", attacher, dir, b.image).CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	step := time.Since(began) / 20
	for after := time.Duration(0); ; after += step {
		cmd := exec.Command("/proc/self/exe", attacher, dir, b.image)
		cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		kill := time.AfterFunc(after, func() { _ = cmd.Process.Kill() })
		err := cmd.Wait()
		kill.Stop()
		all, lerr := b.List()
		if lerr != nil {
			t.Fatal(lerr)
		}
		for _, a := range all {
			states[a.State]++
			// A helper that has just been left alone may still be on its way out.
			soon(t, "it can be detached", func() error {
				_, err := b.Detach(t.Context(), a.ID)
				if errors.Is(err, ErrNotAttached) {
					return nil
				}
				return err
			})
		}
		b.nothingLeft()
		if t.Failed() {
			t.Fatalf("killed after %v", after)
		}
		if err == nil {
			break
		}
		if after > 10*time.Second {
			t.Fatal("it never comes to its end")
		}
	}
	t.Logf("found after kills: %v", states)
	if states[Incomplete] == 0 {
		t.Error("no kill hit an attachment that was being made")
	}
}

// TestReboot: an attachment of an earlier boot is gone, and says so.
func TestReboot(t *testing.T) {
	b := newBench(t)
	rec, err := b.newRecord(Request{Source: b.image, Method: FUSE})
	if err != nil {
		t.Fatal(err)
	}
	rec.Boot, rec.Device, rec.Complete, rec.Helper = "another", "/dev/loop0", true, process.Process{PID: os.Getpid(), Start: 1, Boot: "another"}
	if err := rec.save(); err != nil {
		t.Fatal(err)
	}
	rec.unlock()
	if all, err := b.List(); err != nil || len(all) != 1 || all[0].State != Gone {
		t.Errorf("%+v, %v", all, err)
	}
	if _, err := b.Detach(t.Context(), "/dev/loop0"); !errors.Is(err, ErrNotAttached) {
		t.Errorf("by a device's name that means another now: %v", err)
	}
	b.detach(b.image)
}

// TestRounds: nothing grows.
func TestRounds(t *testing.T) {
	b := newBench(t)
	count := func() int {
		fds, err := os.ReadDir("/proc/self/fd")
		if err != nil {
			t.Fatal(err)
		}
		return len(fds)
	}
	var before int
	for i := range 10 {
		b.detach(b.attach(i%2 == 0).Device)
		if i == 0 {
			before = count()
		}
	}
	// A helper is reaped in the background, and a descriptor of it closed.
	for deadline := time.Now().Add(20 * time.Second); count() > before; time.Sleep(10 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("%d descriptors, %d after the first round", count(), before)
		}
	}
}
