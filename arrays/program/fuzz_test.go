package program

import (
	"bytes"
	"context"
	"strings"
	"testing"
	"time"
	"unicode/utf8"

	"github.com/cleave-san/cleave/arrays"
	"github.com/cleave-san/cleave/arrays/driver"
)

// FuzzReply has a program answer every call with the same bytes ($ID stands for the
// request's): what comes of it is an error of one short line, or what an Array lets
// through to its callers.
func FuzzReply(f *testing.F) {
	for _, s := range []string{
		`{"id": "$ID", "result": []}`,
		`{"id": "$ID", "result": [{"id": "t@v", "tag": "t", "volume": "v", "size": 512, "method": "array-snapshot", "state": "Synchronized", "at": "2026-11-23T04:04:58Z", "held": 7}]}`,
		`{"id": "$ID", "result": {"id": "v", "name": "v", "size": 512, "state": "Synchronized", "mirrors": 2}}`,
		`{"id": "$ID", "result": {"provider": "p", "calls": ["describe"], "maxGroup": -1}}`,
		`{"id": "$ID", "result": {"path": "/dev/null"}}`,
		`{"id": "$ID", "result": {"portals": ["[::1]:3260"], "iqn": "iqn.x", "lun": 18446744073709551615, "writable": true}}`,
		`{"id": "$ID", "result": {"granularity": 512, "regions": [{"off": 9223372036854775807, "len": 1}, {"off": 0, "len": -1}]}}`,
		`{"id": "$ID", "result": [{"area": "limit", "check": "LUNs", "limit": {"unit": "LUNs", "used": 3, "most": 4, "next": 2}}]}`,
		`{"id": "$ID", "error": {"kind": "busy", "message": "a\nb\u0000\ud800"}}`,
		`{"id": "$ID", "result": null}`, `{"id": "$ID"}`, `[]`, "", "\n\n", `{"id": "$ID", "result": {}} x`,
	} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		d := &Driver{o: Options{Limit: time.Minute, PrepareLimit: time.Minute}}
		d.send = func(_ context.Context, _ call, id string, _ []byte) (reply, error) {
			return parse(bytes.ReplaceAll(data, []byte("$ID"), []byte(id)), id)
		}
		a, ctx := arrays.New("fuzz", d, arrays.Options{}), t.Context()
		check := func(what string, err error) bool {
			if err == nil {
				return true
			}
			if s := err.Error(); strings.ContainsAny(s, "\n\x00") || len(s) > 2000 || !utf8.ValidString(s) {
				t.Errorf("%s: %q", what, s)
			}
			return false
		}
		snapshots := func(what string, ss []driver.Snapshot, err error) {
			if !check(what, err) {
				return
			}
			for _, s := range ss {
				if s.Tag != "t" || s.Size <= 0 || s.ID == "" || !printable(string(s.ID)) || s.Held < 0 {
					t.Errorf("%s: %+v", what, s)
				}
			}
		}
		vs := []driver.VolumeID{"v"}
		_, err := a.Describe(ctx)
		check("describe", err)
		v, err := a.Resolve(ctx, driver.Disk{Path: "/v"})
		if check("resolve", err) && (v.ID == "" || v.Size <= 0) {
			t.Errorf("resolve: %+v", v)
		}
		check("prepare", a.Prepare(ctx, vs, driver.PrepareOptions{Tag: "t"}))
		ss, err := a.Split(ctx, "t", vs)
		snapshots("split-group", ss, err)
		s, err := d.Split(ctx, "t", "v")
		if err == nil {
			ss = []driver.Snapshot{s}
		}
		snapshots("split", ss, err)
		ss, err = a.Lookup(ctx, "t")
		snapshots("lookup", ss, err)
		check("arm", a.Arm(ctx, "t", vs, time.Second))
		ss, err = a.Commit(ctx, "t")
		snapshots("commit", ss, err)
		check("abort", a.Abort(ctx, "t"))
		_, err = a.Expose(ctx, "s", driver.ExposeOptions{Initiators: []string{"iqn.x"}})
		check("expose", err)
		check("unexpose", a.Unexpose(ctx, "s"))
		_, err = a.Open(ctx, "s")
		check("open", err)
		check("resync", a.Resync(ctx, "s"))
		_, err = a.Revert(ctx, "s")
		check("revert", err)
		_, err = a.Break(ctx, "s", "n")
		check("break", err)
		c, err := a.Changes(ctx, "v", "", "s")
		if check("changes", err) {
			end := int64(0)
			for _, r := range c.Regions {
				if r.Off < end || r.Len <= 0 {
					t.Errorf("changes: %+v", c)
				}
				end = r.Off + r.Len
			}
		}
		fs, err := d.Check(ctx, vs)
		if check("check", err) {
			for _, f := range fs {
				if f.Area == "" || f.Result == "" || f.Check == "" || f.Detail == "" {
					t.Errorf("check: %+v", f)
				}
			}
		}
		_, err = a.PresentedTo(ctx, "v")
		check("presented-to", err)
		for _, f := range a.Examine(ctx, vs).Findings {
			if s := f.Check + f.Detail + f.Try; strings.ContainsAny(s, "\n\x00") || len(s) > 2000 || !utf8.ValidString(s) {
				t.Errorf("examine: %q", s)
			}
		}
		check("delete", a.Delete(ctx, "s"))
	})
}
