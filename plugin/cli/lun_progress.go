package cli

import (
	"github.com/vbauerster/mpb/v8"
	"github.com/vbauerster/mpb/v8/decor"
)

// lunProgress is a bar on stderr where a person watches, else nothing.
type lunProgress struct {
	all *mpb.Progress
	bar *mpb.Bar
}

func newLunProgress(s Streams, name string, total int64) *lunProgress {
	if !s.ErrTerminal || total == 0 {
		return &lunProgress{}
	}
	all := mpb.New(mpb.WithOutput(s.Err), mpb.WithWidth(40))
	bar := all.AddBar(total, mpb.BarRemoveOnComplete(),
		mpb.PrependDecorators(decor.Name(name+" ")),
		mpb.AppendDecorators(decor.CountersKibiByte("% .1f / % .1f"), decor.Name(" "), decor.AverageETA(decor.ET_STYLE_GO)))
	return &lunProgress{all, bar}
}

func (p *lunProgress) update(done int64) {
	if p.bar != nil {
		p.bar.SetCurrent(done)
	}
}

// end takes the bar away, complete or not.
func (p *lunProgress) end() {
	if p.bar != nil {
		p.bar.Abort(true)
		p.all.Wait()
	}
}
