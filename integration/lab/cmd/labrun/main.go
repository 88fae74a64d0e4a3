// Command labrun runs the lab: every test below integration/, with those that
// carry the build tag "lab" because they take too long for `make test`. It
// writes one result per scenario (a top-level test) to lab/results.json:
//
//	{"name": "guest/TestX", "ok": true, "figures": {"boot of db": "9.1 s"}, "peer": "tgtd", "version": "1.0.79", "why": ""}
//
// It can be stopped and started again: scenarios that passed on the same commit
// are not run again, unless -again is given. A skip is a failure here.
//
// A test reports a figure by t.Log("FIGURE name: value") and its peer by
// t.Log("PEER name version").
package main

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/exec"
	"os/signal"
	"regexp"
	"slices"
	"strings"
	"syscall"

	"github.com/cleave-san/cleave/integration/results"
)

// result is one scenario in the results file.
type result struct {
	Name    string            `json:"name"`
	OK      bool              `json:"ok"`
	Figures map[string]string `json:"figures,omitempty"`
	Peer    string            `json:"peer,omitempty"`
	Version string            `json:"version,omitempty"`
	Why     string            `json:"why"` // of a failure or a skip
	Commit  string            `json:"commit"`
	Seconds float64           `json:"seconds"`
}

const root = "github.com/cleave-san/cleave/integration"

func main() {
	run := flag.String("run", ".", "regular expression of scenario names")
	out := flag.String("o", "lab/results.json", "results file")
	again := flag.Bool("again", false, "run what has passed already")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	err := lab(ctx, *run, *out, *again)
	stop()
	if err != nil {
		fmt.Fprintln(os.Stderr, "labrun:", err)
		os.Exit(1)
	}
}

func lab(ctx context.Context, run, out string, again bool) error {
	chosen, err := regexp.Compile(run)
	if err != nil {
		return err
	}
	done, err := results.Load[result](out)
	if err != nil {
		return err
	}
	commit := commitNow(ctx)
	scenarios, err := list(ctx)
	if err != nil {
		return err
	}
	failed := 0
	for _, s := range scenarios {
		if !chosen.MatchString(s.name()) {
			continue
		}
		i := slices.IndexFunc(done, func(r result) bool { return r.Name == s.name() })
		if i >= 0 && done[i].OK && done[i].Commit == commit && !strings.HasSuffix(commit, changed) && !again {
			fmt.Printf("ok    %s (before)\n", s.name())
			continue
		}
		r, err := s.run(ctx)
		if err != nil {
			return err
		}
		r.Commit = commit
		if i >= 0 {
			done[i] = r
		} else {
			done = append(done, r)
		}
		if err := results.Save(out, done); err != nil {
			return err
		}
		if !r.OK {
			failed++
			fmt.Printf("FAIL  %s: %s\n", r.Name, r.Why)
			continue
		}
		fmt.Printf("ok    %s  %.0f s  %s\n", r.Name, r.Seconds, figures(r.Figures))
	}
	if failed > 0 {
		return fmt.Errorf("%d scenarios failed; %s says why", failed, out)
	}
	return nil
}

func figures(m map[string]string) string {
	var l []string
	for k, v := range m {
		l = append(l, k+" "+v)
	}
	slices.Sort(l)
	return strings.Join(l, ", ")
}

// changed marks a commit with changes on top.
const changed = "+changes"

// commitNow names what is tested; a changed tree is never the same twice.
func commitNow(ctx context.Context) string {
	head, err := exec.CommandContext(ctx, "git", "rev-parse", "HEAD").Output()
	if err != nil {
		return "unknown"
	}
	status, err := exec.CommandContext(ctx, "git", "status", "--porcelain", "--untracked-files=no").Output()
	if err != nil || len(status) > 0 {
		return strings.TrimSpace(string(head)) + changed
	}
	return strings.TrimSpace(string(head))
}

// scenario is one top-level test of a package below integration/; a package
// that does not build is one without a test.
type scenario struct{ pkg, test string }

func (s scenario) name() string {
	return strings.Trim(strings.TrimPrefix(s.pkg, root)+"/"+s.test, "/")
}

// list asks the compiled tests for their names.
func list(ctx context.Context) ([]scenario, error) {
	cmd := exec.CommandContext(ctx, "go", "test", "-tags", "lab", "-json", "-list", "^Test", root+"/...")
	cmd.Stderr = os.Stderr
	out, err := cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	if err := cmd.Start(); err != nil {
		return nil, err
	}
	var all []scenario
	if err := events(out, func(e event) {
		name := strings.TrimSpace(e.Output)
		switch {
		case e.Action == "output" && strings.HasPrefix(name, "Test") && !strings.Contains(name, " "):
			all = append(all, scenario{pkg: e.Package, test: name})
		case e.Action == "build-output":
			fmt.Fprint(os.Stderr, e.Output)
		case e.Action == "fail":
			all = append(all, scenario{pkg: e.Package}) // fails when it is run, too
		}
	}); err != nil {
		return nil, err
	}
	var exit *exec.ExitError
	if err := cmd.Wait(); err != nil && !errors.As(err, &exit) {
		return nil, fmt.Errorf("listing the tests: %w", err)
	}
	return all, nil
}

// event is one line of `go test -json`.
type event struct {
	Action  string
	Package string
	Test    string
	Output  string
	Elapsed float64
}

func events(r io.Reader, each func(event)) error {
	s := bufio.NewScanner(r)
	s.Buffer(nil, 1<<20)
	for s.Scan() {
		var e event
		if json.Unmarshal(s.Bytes(), &e) == nil {
			each(e)
		}
	}
	return s.Err()
}

var (
	figureLine = regexp.MustCompile(`FIGURE ([^:]+): (.*)`)
	peerLine   = regexp.MustCompile(`PEER (\S+) (.*)`)
	sourceLine = regexp.MustCompile(`^\s+\w+\.go:\d+: (.*)`)
)

// run runs one scenario. Its own failure is in the result; the error says that
// the tests could not be run or were stopped.
func (s scenario) run(ctx context.Context) (result, error) {
	r := result{Name: s.name(), Figures: map[string]string{}}
	if s.test == "" {
		r.Why = "its tests do not build"
		return r, nil
	}
	cmd := exec.CommandContext(ctx, "go", "test", "-tags", "lab", "-json", "-count=1", "-v", "-timeout", "60m", "-run", "^"+s.test+"$", s.pkg)
	cmd.Stderr = os.Stderr
	cmd.Cancel = func() error { return cmd.Process.Signal(os.Interrupt) }
	out, err := cmd.StdoutPipe()
	if err != nil {
		return r, err
	}
	if err := cmd.Start(); err != nil {
		return r, err
	}
	last := ""
	if err := events(out, func(e event) {
		if m := figureLine.FindStringSubmatch(e.Output); m != nil {
			r.Figures[m[1]] = m[2]
		} else if m := peerLine.FindStringSubmatch(e.Output); m != nil {
			r.Peer, r.Version = m[1], strings.TrimSpace(m[2])
		} else if m := sourceLine.FindStringSubmatch(e.Output); m != nil {
			last = m[1]
		}
		switch {
		case e.Test != s.test:
		case e.Action == "pass":
			r.OK, r.Seconds = true, e.Elapsed
		case e.Action == "skip":
			r.Why = "skipped: " + last
		case e.Action == "fail":
			r.Why = last
		}
	}); err != nil {
		return r, err
	}
	if err := cmd.Wait(); err != nil && r.OK {
		r.OK, r.Why = false, "the test passed, its program failed: "+last
	}
	if err := ctx.Err(); err != nil {
		return r, err
	}
	if !r.OK && r.Why == "" {
		r.Why = "ended without a verdict"
	}
	return r, nil
}
