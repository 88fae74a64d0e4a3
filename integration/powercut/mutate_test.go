//go:build lab

package powercut

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"
)

// syncs are the functions of the embedded array that make something stable, or
// that do nothing else than call those.
var syncs = []string{
	"Sync", "SyncDir", "flush", "flushBlocks", "flushLocked", "flushMaps", "flushMarks", "sync", "syncEpoch",
	"settle", "settleMirror", "settleDir", "syncAll",
}

// needless are calls that may be missing without harm to anything stable, by
// file, function and callee, with the reason why they are there.
var needless = map[string]string{
	"cut.go makeReady flush":         "only so that little is left to sync after the instant",
	"mapfile.go withJournal SyncDir": "only for the logs of an earlier version, which no trace has",
	"fill.go copy flush":             "only so that less is copied again after a crash",
	"watch.go letGo Sync":            "only so that it is known what goes wrong with what was acknowledged: marks stay until it is synced, and no trace has a pool that goes",
	"cut.go flush Sync":              "only so that little is left to sync after the instant, or to write out in the hold",
}

// steps are those of a trace that come to the syncs of a file, where it takes long
// for the others to come there; more of them are done.
var steps = map[string]string{
	"break.go":    "break,write to split,create",
	"create.go":   "create,delete volume",
	"cut.go":      "split,resync,clean",
	"exchange.go": "revert,reverse,write to split,power cut,lose mirror",
	"fill.go":     "add mirror,lose mirror,resync,power cut",
	"grow.go":     "grow",
	"leaving.go":  "split,failing split,resync",
	"mirror.go":   "add mirror,remove mirror",
	"mapfile.go":  "split,write",
	"missed.go":   "lose mirror,repair,clean",
	"recover.go":  "split,failing split,resync,power cut",
	"repair.go":   "lose mirror,grow",
	"resync.go":   "resync,split,delete split,grow",
	"scrub.go":    "scrub,add mirror",
	"set.go":      "split,restart,resync,clean",
	"snapshot.go": "split,write to split",
	"trash.go":    "delete volume,create,remove mirror",
	"undo.go":     "failing split,split,resync",
	"volume.go":   "create,add mirror,remove mirror",
}

// cuts is how many cut points have to pass for a missing fsync to be called
// unnoticed, unless CLEAVE_POWERCUT_CUTS says otherwise.
const cuts = "20000"

// baseline is how many cut points have to pass with nothing missing, of the same
// traces, before a failure is taken for what was left out.
const baseline = "10000"

// atOnce is how many mutants run at a time. Each uses all processors.
const atOnce = 2

// site is one call.
type site struct {
	file       string // below arrays/embedded
	line, col  int
	fn, callee string
	start, end int    // of the call in the file
	args       string // as in the source
}

func (s site) String() string {
	return fmt.Sprintf("%s:%d:%d %s in %s", filepath.Base(s.file), s.line, s.col, s.callee, s.fn)
}

const array = "../../arrays/embedded"

// sites finds the calls, in the array and in what it does with its files. src is
// the text of the files with any, by their path below array.
func sites(t *testing.T) (out []site, src map[string][]byte) {
	src = map[string][]byte{}
	for _, dir := range []string{"", "disk"} {
		names, err := filepath.Glob(filepath.Join(array, dir, "*.go"))
		if err != nil {
			t.Fatal(err)
		}
		for _, name := range names {
			if strings.HasSuffix(name, "_test.go") || filepath.Base(name) == "os.go" { // the kernel's own
				continue
			}
			b, err := os.ReadFile(name)
			if err != nil {
				t.Fatal(err)
			}
			set := token.NewFileSet()
			f, err := parser.ParseFile(set, name, b, 0)
			if err != nil {
				t.Fatal(err)
			}
			rel, err := filepath.Rel(array, name)
			if err != nil {
				t.Fatal(err)
			}
			if found := calls(set, f, b, rel); len(found) > 0 {
				out, src[rel] = append(out, found...), b
			}
		}
	}
	return out, src
}

func calls(set *token.FileSet, f *ast.File, src []byte, file string) (out []site) {
	for _, d := range f.Decls {
		fn, ok := d.(*ast.FuncDecl)
		if !ok {
			continue
		}
		ast.Inspect(fn, func(n ast.Node) bool {
			call, ok := n.(*ast.CallExpr)
			if !ok {
				return true
			}
			var name string
			switch x := call.Fun.(type) {
			case *ast.SelectorExpr:
				name = x.Sel.Name
			case *ast.Ident:
				if name = x.Name; name == "sync" { // a parameter of that name
					return true
				}
			}
			if !slices.Contains(syncs, name) || name == "settle" && len(call.Args) > 0 { // which judges errors
				return true
			}
			at := set.Position(call.Pos())
			s := site{file: file, line: at.Line, col: at.Column, fn: fn.Name.Name, callee: name, start: at.Offset, end: set.Position(call.End()).Offset}
			if len(call.Args) > 0 {
				s.args = string(src[set.Position(call.Args[0].Pos()).Offset : s.end-1])
			}
			out = append(out, s)
			return true
		})
	}
	return out
}

// choice is put into both packages: a call is left out if the environment says
// so. Left is how often that was done.
const choice = `package %s

import (
	"os"
	"sync/atomic"
)

var (
	mutant = os.Getenv("CLEAVE_POWERCUT_WITHOUT")
	Left   atomic.Int64
)

func leftOut(site string) bool {
	if mutant != site {
		return false
	}
	if Left.Add(1) == 1 {
		os.Stderr.WriteString("without it\n")
	}
	return true
}

func unlessWithout(site string, call func() error) error {
	if leftOut(site) {
		return nil
	}
	return call()
}

func allUnlessWithout(site string, n int, call func() []error) []error {
	if leftOut(site) {
		return make([]error, n)
	}
	return call()
}
`

// lens has the power-cut tests look where it matters: soon after a call was left
// out. What it should have made stable is, some sync points later, in most cases.
const lens = `package embedded

import "github.com/cleave-san/cleave/arrays/embedded/disk"

func init() {
	if mutant != "" {
		pcLeft = func() int64 { return Left.Load() + disk.Left.Load() }
	}
}
`

// build compiles the power-cut tests with all calls in them, each of which can be
// left out when they run.
func build(t *testing.T, all []site, src map[string][]byte) (bin string) {
	dir := t.TempDir()
	replace := map[string]string{}
	put := func(rel string, b []byte) {
		file := filepath.Join(dir, strings.ReplaceAll(rel, "/", "_"))
		abs, err := filepath.Abs(filepath.Join(array, rel))
		if err == nil {
			err = os.WriteFile(file, b, 0o600)
		}
		if err != nil {
			t.Fatal(err)
		}
		replace[abs] = file
	}
	put("mutant.go", fmt.Appendf(nil, choice, "embedded"))
	put("mutant_test.go", []byte(lens))
	put("disk/mutant.go", fmt.Appendf(nil, choice, "disk"))
	for _, rel := range slices.Sorted(maps.Keys(src)) {
		put(rel, mutate(src[rel], rel, all))
	}
	overlay := filepath.Join(dir, "overlay.json")
	b, err := json.Marshal(map[string]any{"Replace": replace})
	if err == nil {
		err = os.WriteFile(overlay, b, 0o600)
	}
	if err != nil {
		t.Fatal(err)
	}
	bin = filepath.Join(dir, "embedded.test")
	cmd := exec.CommandContext(t.Context(), "go", "test", "-c", "-vet=off", "-overlay", overlay, "-o", bin, ".")
	cmd.Dir = array
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	return bin
}

// mutate has each of a file's calls made only unless it is to be left out.
func mutate(src []byte, file string, all []site) []byte {
	type insert struct {
		at   int
		text string
	}
	var ins []insert
	for _, s := range all {
		switch {
		case s.file != file:
		case s.callee == "syncAll":
			ins = append(ins, insert{s.start, fmt.Sprintf("allUnlessWithout(%q, len(%s), func() []error { return ", s, s.args)}, insert{s.end, " })"})
		default:
			ins = append(ins, insert{s.start, fmt.Sprintf("unlessWithout(%q, func() error { return ", s)}, insert{s.end, " })"})
		}
	}
	slices.SortStableFunc(ins, func(x, y insert) int { return x.at - y.at })
	var out []byte
	at := 0
	for _, i := range ins {
		out = append(append(out, src[at:i.at]...), i.text...)
		at = i.at
	}
	return append(out, src[at:]...)
}

var reason = regexp.MustCompile(`(?m)^.*CLEAVE_POWERCUT_SEED=.*$|^panic: .*$|^fatal error: .*$|^ +powercut\w+_test.go:.*$`)

// Without any one of its fsyncs, the array fails the power-cut tests. Choose
// some with -run TestEverySyncCounts/without/recover.go.
func TestEverySyncCounts(t *testing.T) {
	all, src := sites(t)
	bin := build(t, all, src)
	used := map[string]bool{}
	budget := os.Getenv("CLEAVE_POWERCUT_CUTS")
	if budget == "" {
		budget = cuts
	}
	begun := time.Now()
	t.Run("with all of them", func(t *testing.T) {
		if out, err := run(t.Context(), bin, "", "", baseline); err != nil {
			t.Fatalf("the tests fail with nothing missing: %s", reason.Find(out))
		}
		t.Logf("FIGURE time of %s cuts with nothing missing: %v", baseline, time.Since(begun).Round(time.Second))
	})
	if t.Failed() {
		t.FailNow()
	}
	var tried, caught atomic.Int64
	slots := make(chan struct{}, atOnce)
	t.Run("without", func(t *testing.T) {
		for _, s := range all {
			name := s.file + " " + s.fn + " " + s.callee
			if why := needless[name]; why != "" {
				used[name] = true
				t.Logf("left in: %v: %s", s, why)
				continue
			}
			t.Run(s.String(), func(t *testing.T) {
				t.Parallel()
				slots <- struct{}{}
				defer func() { <-slots }()
				tried.Add(1)
				took := time.Now()
				out, err := run(t.Context(), bin, s.String(), steps[s.file], budget)
				how := fmt.Sprintf("in %v: %v", time.Since(took).Round(time.Millisecond), s)
				switch {
				case !bytes.Contains(out, []byte("without it\n")):
					t.Errorf("never came to it %s: %v: %.200s", how, err, bytes.TrimSpace(reason.Find(out)))
				case err != nil:
					caught.Add(1)
					t.Logf("caught %s: %.200s", how, bytes.TrimSpace(reason.Find(out)))
				default:
					t.Errorf("nothing noticed that it is missing %s", how)
				}
			})
		}
	})
	for name := range needless {
		if !used[name] {
			t.Errorf("there is no %s any more that could be needless", name)
		}
	}
	t.Logf("FIGURE calls: %d", len(all))
	t.Logf("FIGURE fsyncs taken out: %d", tried.Load())
	t.Logf("FIGURE noticed: %d", caught.Load())
	t.Logf("FIGURE time: %v", time.Since(begun).Round(time.Second))
}

// run runs the power-cut tests without a call, and with more of some steps. An
// error says that they failed.
func run(ctx context.Context, bin, without, more, budget string) (out []byte, err error) {
	cmd := exec.CommandContext(ctx, bin, "-test.run", "^TestPowerCut", "-test.failfast", "-test.timeout", "20m")
	cmd.Dir = array
	cmd.Env = append(os.Environ(), "CLEAVE_POWERCUT_CUTS="+budget, "CLEAVE_POWERCUT_SEED=1",
		"CLEAVE_POWERCUT_WITHOUT="+without, "CLEAVE_POWERCUT_MORE="+more)
	return cmd.CombinedOutput()
}
