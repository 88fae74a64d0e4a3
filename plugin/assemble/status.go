package assemble

import (
	"context"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"

	"github.com/cleave-san/cleave/arrays"
	"github.com/cleave-san/cleave/arrays/driver"
	"github.com/cleave-san/cleave/arrays/embedded"
	"github.com/cleave-san/cleave/arrays/embedded/remote"
	"github.com/cleave-san/cleave/arrays/lvm"
	"github.com/cleave-san/cleave/plugin/cli"
	"github.com/cleave-san/cleave/plugin/dataplane"
)

// Status implements cli.Storage.
func (s storage) Status(ctx context.Context) (cli.ArrayStatus, error) {
	st, err := s.Client.Status(ctx)
	if err != nil {
		return cli.ArrayStatus{}, err
	}
	out := cli.ArrayStatus{
		IQN: st.IQN, PID: st.PID, Started: st.Started, LUNs: len(st.LUNs), Problems: st.Problems,
		Pools: []cli.Pool{}, Portals: []cli.TargetPortal{}, Sessions: []cli.TargetSession{},
	}
	for _, p := range st.Pools {
		out.Pools = append(out.Pools, cli.Pool(p))
	}
	for _, p := range st.Listening {
		out.Portals = append(out.Portals, cli.TargetPortal(p))
	}
	for _, x := range st.Sessions {
		out.Sessions = append(out.Sessions, cli.TargetSession{Initiator: x.Initiator, Target: x.Target, From: x.Remote, Since: x.Since})
	}
	return out, nil
}

// Events implements cli.Storage.
func (s storage) Events(ctx context.Context, q cli.EventQuery) ([]cli.Event, error) {
	es, err := s.Client.Events(ctx, remote.EventQuery(q))
	if err != nil {
		return nil, err
	}
	out := make([]cli.Event, 0, len(es))
	for _, e := range es {
		out = append(out, cli.Event(e))
	}
	return out, nil
}

// Masks implements cli.Storage.
func (s storage) Masks(ctx context.Context) ([]cli.Mask, error) {
	ms, err := s.Client.Masks(ctx)
	if err != nil {
		return nil, err
	}
	out := make([]cli.Mask, 0, len(ms))
	for _, m := range ms {
		out = append(out, cli.Mask{
			Initiator: m.Initiator, LUN: m.LUN, Access: m.Access, Sessions: m.Sessions,
			Kind: m.Kind, Of: m.Of, Volume: m.Volume, NAA: m.Identity.NAAString(),
		})
	}
	return out, nil
}

// listArrays asks the arrays of a configuration how they are; without one, the
// one at the socket.
func listArrays(ctx context.Context, config, socket string, getenv func(string) string) ([]cli.Array, error) {
	cs := []ArrayConfig{{Name: typeEmbedded, Type: typeEmbedded, Socket: socket}}
	if config != "" {
		c, err := Load(config, getenv)
		if err != nil {
			return nil, err
		}
		cs = c.Arrays
	}
	out := make([]cli.Array, 0, len(cs))
	for i, c := range cs {
		switch c.Type {
		case typeEmbedded:
			out = append(out, askArray(ctx, c))
		case typeLVM:
			out = append(out, askLVM(ctx, c))
		case typeProgram:
			out = append(out, askProgram(ctx, c))
		case typeCinder, typeRBD:
			out = append(out, askByExamining(ctx, i, c))
		default:
			return nil, unknownType(i, c)
		}
	}
	return out, nil
}

// askLVM asks lvm2 for the volume group.
func askLVM(ctx context.Context, c ArrayConfig) cli.Array {
	x := cli.Array{Name: c.Name, Type: c.Type, State: cli.ArrayOK}
	d, err := openLVM(c, slog.New(slog.DiscardHandler))
	if err == nil {
		var s lvm.Status
		if s, err = d.Status(ctx); err == nil {
			x.Volumes = s.Volumes
			if len(s.Problems) > 0 {
				x.State, x.Detail = cli.ArrayProblems, strings.Join(s.Problems, "; ")
			}
		}
	}
	if err != nil {
		x.State, x.Detail, x.Err = cli.ArraySilent, err.Error(), err
	}
	return x
}

// askProgram asks a program for its description: all that one without its array
// has to answer.
func askProgram(ctx context.Context, c ArrayConfig) cli.Array {
	x := cli.Array{Name: c.Name, Type: c.Type, State: cli.ArrayOK}
	p, err := openProgram(ctx, c, slog.New(slog.DiscardHandler))
	if err != nil {
		x.State, x.Detail, x.Err = cli.ArraySilent, err.Error(), err
		return x
	}
	if err := p.Close(); err != nil {
		x.State, x.Detail = cli.ArrayProblems, err.Error()
	}
	return x
}

func askArray(ctx context.Context, c ArrayConfig) cli.Array {
	x := cli.Array{Name: c.Name, Type: c.Type, Socket: c.Socket, State: cli.ArrayOK}
	client := remote.New(c.Socket)
	defer client.Close()
	st, err := client.Status(ctx)
	var vs []remote.Volume
	if err == nil {
		vs, err = client.Volumes(ctx)
	}
	if err != nil {
		x.State, x.Detail, x.Err = cli.ArraySilent, err.Error(), err
		return x
	}
	x.Volumes, x.LUNs, x.Sessions = len(vs), len(st.LUNs), len(st.Sessions)
	if n := len(st.Problems); n > 0 {
		x.State, x.Detail = cli.ArrayProblems, st.Problems[0]
		if n > 1 {
			x.Detail = fmt.Sprintf("%s (and %d more)", x.Detail, n-1)
		}
	}
	return x
}

// rescan makes the catalogue of an array that does not run anew.
func rescan(ctx context.Context, o cli.RescanOptions, getenv func(string) string) (cli.Rescan, error) {
	d, err := dataPlane(cli.ArrayOptions{Config: o.Config, State: o.State, Pools: o.Pools}, getenv)
	if err == nil {
		err = d.poolsGiven()
	}
	if err != nil {
		return cli.Rescan{}, err
	}
	if !o.DryRun {
		if err := os.MkdirAll(filepath.Dir(dataplane.ArrayState(d.State)), 0o700); err != nil {
			return cli.Rescan{}, fmt.Errorf("state directory of the array: %w", err)
		}
	}
	r, err := embedded.Rescan(ctx, embedded.Options{StateDir: dataplane.ArrayState(d.State), Pools: d.Pools}, o.DryRun)
	switch arrays.KindOf(err) {
	case driver.Busy:
		return cli.Rescan{}, &hinted{err, "a `cleave array` has these pools open: end it first"}
	case driver.InvalidRequest:
		return cli.Rescan{}, &hinted{err, "`cleave array rescan --help` says when it is of use"}
	}
	if err != nil {
		return cli.Rescan{}, err
	}
	return rescanned(r), nil
}

func rescanned(r embedded.RescanReport) cli.Rescan {
	out := cli.Rescan{
		Array: r.Array.String(), Written: r.Written, LeftOver: append([]string{}, r.LeftOver...), Notes: append([]string{}, r.Notes...),
		Volumes: []cli.RescannedVolume{}, Snapshots: []cli.RescannedSplit{},
	}
	for _, v := range r.Volumes {
		x := cli.RescannedVolume{Name: v.Name, ID: v.ID.String(), Size: v.Size}
		for _, m := range v.Mirrors {
			x.Mirrors = append(x.Mirrors, cli.RescannedMirror{ID: m.ID.String(), Pool: m.Pool, State: m.State})
		}
		out.Volumes = append(out.Volumes, x)
	}
	for _, s := range r.Snapshots {
		out.Snapshots = append(out.Snapshots, cli.RescannedSplit{ID: s.ID.String(), Tag: string(s.Tag), Volume: s.Volume, Pool: s.Pool})
	}
	return out
}
