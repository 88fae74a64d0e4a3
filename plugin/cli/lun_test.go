package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strconv"
	"testing"

	"github.com/klauspost/compress/zstd"
	"github.com/rogpeppe/go-internal/testscript"
)

// TestLunScripts runs testdata/script/lun*.txtar against `cleave lun`.
//
// Besides testscript's own commands they have:
//
//	cleave ARGS…      runs the command in this process
//	status N          the exit status of the last cleave
//	unpack NAME FILE  writes an image of lun/testdata
//	poke FILE OFF HEX overwrites bytes
func TestLunScripts(t *testing.T) {
	files, err := filepath.Glob("testdata/script/lun*.txtar")
	if err != nil || len(files) == 0 {
		t.Fatalf("no scripts: %v", err)
	}
	images, err := filepath.Abs("../../lun/testdata")
	if err != nil {
		t.Fatal(err)
	}
	testscript.Run(t, testscript.Params{
		Files: files,
		Cmds: map[string]func(*testscript.TestScript, bool, []string){
			"cleave": runLun,
			"status": func(ts *testscript.TestScript, _ bool, args []string) {
				if got := ts.Getenv("status"); len(args) != 1 || got != args[0] {
					ts.Fatalf("exit status %s, want %v", got, args)
				}
			},
			"unpack": func(ts *testscript.TestScript, _ bool, args []string) {
				ts.Check(unpackImage(filepath.Join(images, args[0]+".img.zst"), ts.MkAbs(args[1])))
			},
			"poke": func(ts *testscript.TestScript, _ bool, args []string) {
				ts.Check(poke(ts.MkAbs(args[0]), args[1], args[2]))
			},
		},
	})
}

func runLun(ts *testscript.TestScript, neg bool, args []string) {
	for i, a := range args {
		if filepath.Ext(a) == ".img" {
			args[i] = ts.MkAbs(a)
		}
	}
	code := run(context.Background(), args, Streams{Out: ts.Stdout(), Err: ts.Stderr()}, Parts{})
	ts.Setenv("status", strconv.Itoa(code))
	if (code != ExitOK) != neg {
		ts.Fatalf("cleave %v: exit status %d", args, code)
	}
}

func unpackImage(from, to string) error {
	in, err := os.Open(from)
	if err != nil {
		return err
	}
	defer in.Close()
	z, err := zstd.NewReader(in)
	if err != nil {
		return err
	}
	defer z.Close()
	out, err := os.Create(to)
	if err != nil {
		return err
	}
	_, err = io.Copy(out, z)
	return errors.Join(err, out.Close())
}

func poke(path, off, hex string) error {
	at, err := strconv.ParseInt(off, 0, 64)
	if err != nil {
		return err
	}
	var b []byte
	if _, err := fmt.Sscanf(hex, "%x", &b); err != nil {
		return err
	}
	f, err := os.OpenFile(path, os.O_WRONLY, 0)
	if err != nil {
		return err
	}
	_, err = f.WriteAt(b, at)
	return errors.Join(err, f.Close())
}
