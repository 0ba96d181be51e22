module github.com/libmmada/libmmada/bindings/go

go 1.24
