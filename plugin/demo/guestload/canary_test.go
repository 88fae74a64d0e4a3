package main

import (
	"context"
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

func canaryFile(t *testing.T) string {
	t.Helper()
	name := filepath.Join(t.TempDir(), "device")
	if err := os.WriteFile(name, make([]byte, 1<<20+512), 0o600); err != nil {
		t.Fatal(err)
	}
	return name
}

func TestCanaryOfOneInstant(t *testing.T) {
	name := canaryFile(t)
	ctx, stop := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- runCanary(ctx, name, name, 0) }()
	for deadline := time.Now().Add(30 * time.Second); ; {
		if c, err := readCanary(name, name); err == nil && c.last >= 3 {
			break
		}
		if time.Now().After(deadline) {
			t.Fatal("the writer does not write")
		}
	}
	stop()
	if err := <-ended; !errors.Is(err, context.Canceled) {
		t.Fatal(err)
	}
	before, err := readCanary(name, name)
	if err != nil {
		t.Fatal(err)
	}
	if err := before.check(); err != nil {
		t.Fatal(err)
	}
	// A second writer goes on where the first ended.
	ctx, stop = context.WithTimeout(context.Background(), 50*time.Millisecond)
	defer stop()
	if err := runCanary(ctx, name, name, time.Millisecond); !errors.Is(err, context.DeadlineExceeded) {
		t.Fatal(err)
	}
	if after, err := readCanary(name, name); err != nil || after.last < before.last {
		t.Fatalf("after a restart: %+v, %v; before %+v", after, err, before)
	}
}

func TestCanaryCheck(t *testing.T) {
	for _, c := range []struct {
		first, last uint64
		torn        bool
	}{{1, 0, false}, {1, 1, false}, {7, 6, false}, {7, 5, true}, {6, 7, true}, {9, 0, true}} {
		if err := (canary{c.first, c.last}).check(); errors.Is(err, errTorn) != c.torn {
			t.Errorf("%d near the start, %d near the end: %v", c.first, c.last, err)
		}
	}
}

func TestCanaryDamaged(t *testing.T) {
	name := canaryFile(t)
	if _, err := readCanary(name, name); err == nil {
		t.Error("an empty device has a canary")
	}
	block := make([]byte, canaryBlock)
	encodeCanary(block, 5)
	block[20] ^= 1
	f, err := os.OpenFile(name, os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if _, err := f.WriteAt(block, 0); err != nil {
		t.Fatal(err)
	}
	err = run(context.Background(), []string{"canary-check", "--device", name}, io.Discard)
	if err == nil || !strings.Contains(err.Error(), "byte 0: canary with a wrong checksum") {
		t.Errorf("damaged canary: %v", err)
	}
}
